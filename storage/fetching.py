"""A file at an address, whole under its name or not at all: resumed, checked, fetched by one process at a time.

Beside `name` lie `name.part`, what has come so far, `name.part.json`, the version that it is of, and `name.lock`. What
has come stays when a connection or a process ends, and the next try goes on there.
"""

import errno
import json
import os
import time
import urllib.error
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from common.console import one_line, progress
from storage.files import write_json
from storage.locks import exclusive
from storage.remote_files import RemoteError, Version, read_from, version_of
from storage.wrappers import impostor

_TRIES = 5  # in a row without a byte
_FIRST_PAUSE = 1.0  # seconds before the second try; doubled each time
_BLOCK = 1 << 22
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT)

# The address of this try, and what to send along to its host.
Address = tuple[str, Mapping[str, str]]


class FetchError(ConnectionError):
    """A file cannot be fetched; the message names its address and says what is kept for the next try."""


def fetch(
    url: str,
    place: Path,
    *,
    digest: Callable[[Path], str] | None = None,
    expected: str = "",
    locate: Callable[[], Address] | None = None,
) -> Path:
    """Make `place` the file at an address, unless it is there already; returns `place`.

    Args:
        url: http or https, as people know it.
        digest: of the content of a file, such as `storage.files.file_sha256`; None if nothing promises one.
        expected: its first digits.
        locate: where the file is at the moment, if not at `url`; asked before each try, as signed addresses expire.

    Raises:
        FetchError: the address does not exist, refuses or cannot be reached; the content is not what was promised; or
            the folder cannot be written.
    """
    if place.is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(_beside(place, "lock")):  # the others wait here, and find the file
            if not place.is_file():
                _download(url, place, locate or (lambda: (url, {})))
                _check(url, place, digest, expected)
                os.replace(_beside(place, "part"), place)
                _beside(place, "part.json").unlink(missing_ok=True)
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"{url} cannot be stored: {_of_disk(error, place)}") from error
    return place


def _download(url: str, place: Path, locate: Callable[[], Address]) -> None:
    """Fetch the rest of the unfinished file, in as many tries as bring something."""
    part, failures, came = _beside(place, "part"), 0, False
    part.touch()
    while True:
        before, address = part.stat().st_size, url
        try:
            address, headers = locate()
            version = version_of(address, headers)
            if _known(place) != version:  # of another file than what has come
                os.truncate(part, 0)
                write_json(_beside(place, "part.json"), asdict(version))
            _append(part, address, version, headers, place.name)
            return
        except RemoteError as error:
            raise FetchError(
                str(error).replace(address, url)
            ) from error  # signed addresses are long, and secret
        except OSError as error:
            if error.errno in (*_FULL, *_UNWRITABLE) and not isinstance(error, urllib.error.URLError):
                raise
            reason: Exception = error
        except Exception as error:  # of the network, in whatever class a library has put it
            reason = error
        size = part.stat().st_size
        failures, came = (1, True) if size > before else (failures + 1, came)
        unreachable = isinstance(reason, urllib.error.URLError) and not isinstance(
            reason, urllib.error.HTTPError
        )
        if failures >= _TRIES or (unreachable and not came):
            kept = f"; {size} bytes are kept in {part}, and the next try goes on there" if size else ""
            raise FetchError(f"{url} cannot be fetched: {one_line(reason)}{kept}") from reason
        time.sleep(_FIRST_PAUSE * 2 ** (failures - 1))


def _append(part: Path, address: str, version: Version, headers: Mapping[str, str], name: str) -> None:
    """Write what is missing; ConnectionError if it ends too early."""
    start = part.stat().st_size
    if start > version.size:
        os.truncate(part, start := 0)
    with (
        open(part, "ab", buffering=0) as file,
        progress(None, f"fetching {name}", total=version.size, unit="B") as bar,
    ):
        bar.unit_scale = True
        bar.update(start)
        if start < version.size:
            for block in read_from(address, start, version, headers):
                file.write(block)
                bar.update(len(block))
        os.fsync(file.fileno())
    if (size := part.stat().st_size) > version.size:
        os.truncate(part, 0)
        raise RemoteError(f"{address} has more than the {version.size} bytes that its server announced")
    if size < version.size:
        raise ConnectionError(f"the connection ended after {size} of {version.size} bytes")


def _check(url: str, place: Path, digest: Callable[[Path], str] | None, expected: str) -> None:
    """Refuse a file that is not what it should be; it is of no use for the next try."""
    part = _beside(place, "part")
    reason = f"it is {what}" if (what := impostor(part)) else ""
    if not reason and digest is not None and not (found := digest(part)).startswith(expected):
        reason = f"its hash begins with {found[: max(8, len(expected))]}, expected {expected}"
    if reason:
        part.unlink()
        raise FetchError(f"{url} did not give the file: {reason}")


def _known(place: Path) -> Version | None:
    """The version that the unfinished file is of."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(_beside(place, "part.json").read_text())
        return Version(facts["size"], facts["etag"])
    return None


def _of_disk(error: OSError, place: Path) -> str:
    if error.errno in _FULL:
        kept = "; what has come is kept for the next try"
        return f"the disk of {place.parent} is full{kept}"
    return f"{place.parent} cannot be written ({error.strerror or error})"


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f"{place.name}.{ending}")
