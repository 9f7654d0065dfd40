"""Copies of remote shards on a local disk: whole ones, bounded in size, shared by all processes of a node.

In the folder, `<hash>-<name>` is a whole shard, the same with `.part` an unfinished one, with `.json` its version, and
with `.index` its index; these two stay when the shard goes. `.room` says that an unfinished one has got room for
all of it. Locks of the kernel say who is at work, so that a killed process blocks nobody: an exclusive one on the
unfinished file belongs to its downloader, shared ones on the whole file to its readers.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from common.console import Clock, duration, say, warn
from storage.files import write_json
from storage.json_files import try_json
from storage.locks import exclusive
from storage.open_files import OpenFiles
from storage.remote_files import RemoteError, Version, read_from, require_readable, version_of

_TRIES = 6  # in a row without a byte
_FIRST_PAUSE = 1.0  # seconds before the second try; doubled each time
_PATIENCE = 600.0  # seconds to wait for readers to let go of shards
_POLL = 0.1
_LONGEST_NAME = 50  # characters of the shard's own name: file systems hold 255 bytes, endings included
_FIRST_NOTICE, _NOTICE = 5.0, 20.0  # seconds after which a download says how far it is


class ShardCache:
    """Fetches remote shards when they are needed, and ahead.

    Args:
        folder: on a disk of the node, with room for ``gigabytes``.
        gigabytes: of whole and unfinished shards together, 10^9 bytes; the least recently used ones go, never one that
            a process has open.
        open_shards: how many stay open in each process.
    """

    def __init__(self, folder: Path, gigabytes: float, open_shards: int = 64) -> None:
        self.folder, self.gigabytes, self._open_shards = folder, gigabytes, open_shards
        self._room = folder / ".room.lock"  # held while shards are counted, and get or lose their names
        self._files = OpenFiles(open_shards, self.open)
        self._waiting: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._thread_of = os.getpid()

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.gigabytes, self._open_shards)

    def place(self, url: str) -> Path:
        """Where the whole shard is, or would be."""
        name = url.split("?")[0].rpartition("/")[2][-_LONGEST_NAME:]
        name = "".join(c if c.isprintable() else "_" for c in name)
        code = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self.folder / f"{code}-{name}"

    def known_version(self, url: str) -> Version | None:
        """Version that was fetched, even if the shard has gone since."""
        facts = try_json(_beside(self.place(url), "json"), size=int, etag=str)
        return Version(facts["size"], facts["etag"]) if facts else None

    def remember(self, url: str, version: Version) -> None:
        """Note the version that an index or a copy is of."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(_beside(self.place(url), "json"), {"url": url, **asdict(version)})

    def read(self, url: str, offset: int, size: int) -> bytes:
        """Bytes of a shard, fewer at its end; raises OSError, and as ``open``."""
        return self._files.read(url, offset, size)

    def open(self, url: str) -> int:
        """Descriptor of a shard, which stays in the cache until it is closed; fetches it first if necessary.

        Raises:
            RemoteError: it cannot be fetched, or there is no room for it.
        """
        place = self.place(url)
        while True:
            try:
                file = os.open(place, os.O_RDONLY)
            except FileNotFoundError:
                self.fetch(url)
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file).st_nlink:  # not removed between the two
                with suppress(OSError):
                    os.utime(place)  # recently used
                return file
            os.close(file)

    def fetch(self, url: str, *, wait: bool = True) -> None:
        """Make a shard whole; raises as ``open``.

        Without ``wait``, what another process fetches or has no room is left out.
        """
        place = self.place(url)
        part = _beside(place, "part")
        self.folder.mkdir(parents=True, exist_ok=True)
        while not place.exists():
            with _claimed(part) as file:
                if file is not None and not place.exists():
                    self._download(url, file, wait)
                elif file is not None:
                    part.unlink(missing_ok=True)
            if not wait:
                return
            if not place.exists():
                self._files.close()  # the other one may wait for room
                time.sleep(_POLL)

    def expect(self, *groups: Sequence[str]) -> None:
        """Fetch shards in the background, those of the first group first."""
        if self._thread_of != os.getpid():  # a forked process has no threads
            self._thread, self._thread_of = None, os.getpid()
        self._waiting.clear()
        for urls in groups:
            ahead = [url for url in urls if not self.place(url).exists()]
            shift = os.getpid() % max(len(ahead), 1)  # processes begin at different ones
            self._waiting.extend(ahead[shift:] + ahead[:shift])
        if self._waiting and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._fetch_waiting, daemon=True)
            self._thread.start()

    def _fetch_waiting(self) -> None:
        while True:
            try:
                url = self._waiting.popleft()
            except IndexError:
                return
            with suppress(Exception):  # whoever needs the shard meets the same error, and raises it
                self.fetch(url, wait=False)

    def _download(self, url: str, file: int, wait: bool) -> None:
        """Fetch the rest of an unfinished shard and give it its name."""
        place, failures = self.place(url), 0
        notice = _Notice(url)
        while True:
            before = os.fstat(file).st_size
            try:
                version = self._agreed_version(url, file)
                if not self._make_room(version.size, place, wait):
                    if not os.fstat(file).st_size:
                        _beside(place, "part").unlink(missing_ok=True)
                    return
                for block in read_from(url, os.fstat(file).st_size, version):
                    _write(file, block, url)
                    notice.show(os.fstat(file).st_size, version.size)
                size = os.fstat(file).st_size
                if size > version.size:
                    os.ftruncate(file, 0)
                    raise RemoteError(
                        f"{url} has more than the {version.size} bytes that its server announced"
                    )
                if size == version.size:
                    break
                raise ConnectionError(f"the connection ended after {size} of {version.size} bytes")
            except RemoteError:
                raise
            except Exception as error:  # of the network, in whatever class a library has put it
                failures = 1 if os.fstat(file).st_size > before else failures + 1
                if failures >= _TRIES:
                    raise RemoteError(f"shard {url} cannot be fetched: {error} ({failures} tries)") from error
                time.sleep(_FIRST_PAUSE * 2 ** (failures - 1))
        os.fsync(file)
        with exclusive(self._room):  # a listing made meanwhile could miss it under both names
            os.replace(_beside(place, "part"), place)
            _beside(place, "room").unlink(missing_ok=True)

    def _agreed_version(self, url: str, file: int) -> Version:
        """The version at the URL; an unfinished shard of another one is begun anew."""
        require_readable(url)
        place, found, known = self.place(url), version_of(url), self.known_version(url)
        if found == known:
            return found
        if known is not None and _beside(place, "index").exists():
            raise RemoteError(
                f"shard {url} changed since it was indexed: {known.size} bytes then, {found.size} now; remove"
                f" {place}.* and start anew"
            )
        os.ftruncate(file, 0)
        self.remember(url, found)
        return found

    # ---- room --------------------------------------------------------------------------------------------------

    def _make_room(self, needed: int, place: Path, wait: bool) -> bool:
        """Remove what was not used for longest until ``needed`` bytes more are allowed."""
        clock, said = Clock(), False
        limit = self.gigabytes * 1e9
        while True:
            with exclusive(self._room):
                if self._evict(limit - needed, place):
                    _beside(place, "room").touch()
                    return True
            if not wait:
                return False
            self._files.close()  # else two processes could wait for each other's open shards
            if needed > limit or clock.elapsed() > _PATIENCE:
                raise RemoteError(
                    f"cache_gigabytes={self.gigabytes:g} has no room for {place.name} ({needed / 1e9:.3g} GB) in"
                    f" {self.folder}: the other shards there are in use"
                )
            if not said and clock.elapsed() > _FIRST_NOTICE:
                warn(f"{self.folder} is full of shards in use; waiting (cache_gigabytes={self.gigabytes:g})")
                said = True
            time.sleep(_POLL)

    def _evict(self, limit: float, place: Path) -> bool:
        """Remove shards until the others have at most ``limit`` bytes; whether they have."""
        entries, used = [], 0
        for entry in os.scandir(self.folder):
            path = Path(entry.path)
            whole = path.with_name(entry.name.removesuffix(".part"))
            if (
                entry.name.startswith(".")
                or whole.suffix in (".json", ".index", ".room", ".samples")
                or whole == place
            ):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # it has got its name, or gone
                continue
            size = max(status.st_size, _granted(whole)) if path != whole else status.st_size
            used += size
            entries.append((status.st_mtime_ns, size, path))
        for _, size, path in sorted(entries):
            if used <= limit:
                break
            used -= size if _removed(path) else 0
        return used <= limit


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f"{place.name}.{ending}")


def _granted(place: Path) -> int:
    """Bytes that an unfinished shard will have, once there was room for them."""
    try:
        _beside(place, "room").stat()
        return try_json(_beside(place, "json"), size=int).get("size", 0)
    except OSError:
        return 0


def _removed(path: Path) -> bool:
    """Remove a file unless another process reads or writes it."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(file, path):  # replaced since it was opened
            return False
        if path.suffix == ".part":
            path.with_suffix(".room").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


@contextmanager
def _claimed(part: Path) -> Iterator[int | None]:
    """The unfinished file, locked; None while another process has it."""
    file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        claimed = _is_at(file, part)  # it may have got its name, or been removed, since it was opened
    except BlockingIOError:
        claimed = False
    try:
        yield file if claimed else None
    finally:
        if claimed:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open too
        os.close(file)


def _write(file: int, block: bytes, url: str) -> None:
    try:
        while block:
            block = block[os.write(file, block) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RemoteError(
                f"the disk is full while shard {url} is fetched; lower cache_gigabytes or set cache to a folder"
                " with more room"
            ) from error
        raise RemoteError(f"shard {url} cannot be stored: {error}") from error


class _Notice:
    """Says now and then how far a download is, if it takes long."""

    def __init__(self, url: str) -> None:
        self._url, self._next, self._clock = url, _FIRST_NOTICE, Clock()
        self._first: int | None = None

    def show(self, size: int, total: int) -> None:
        self._first = size if self._first is None else self._first
        seconds = self._clock.elapsed()
        if seconds < self._next or size >= total:
            return
        self._next = seconds + _NOTICE
        rate = max(size - self._first, 1) / seconds
        left = duration((total - size) / rate)
        say(
            f"fetching {self._url}: {size / total:.0%} of {total / 1e6:.0f} MB, {rate / 1e6:.1f} MB/s, {left} left"
        )
