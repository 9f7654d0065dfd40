"""Where the members of an uncompressed tar file lie, found in one pass over its headers.

Format: POSIX.1-1988 ustar with GNU long names and pax extended headers. Every member is a 512-byte header and its
content padded to 512 bytes; a block of zeros ends the archive.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

_BLOCK = 512
# One request brings the headers of many small members; over a network a request takes longer than a megabyte.
_WINDOW = 1 << 20
_SHARDS_AT_ONCE = 16
_LONGEST_NOTE = 1 << 24  # bytes of a long name or a pax header; more is damage
_LONGEST_NAME = 4096  # bytes, as of a path on Linux; an index has room for the longest name in every row
_OTHER_FORMATS = {
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"PK\x03\x04": "a zip file",
    b"version https://git-lfs": "a pointer of git-lfs (git lfs pull fetches the file)",
}
_FILES, _LINKS, _DEVICES, _FOLDER = (b"0", b"\0", b"7"), (b"1", b"2"), (b"3", b"4", b"6"), b"5"
_NOTES = (b"L", b"K", b"x", b"X", b"g")  # on members that follow

Shard, Result = TypeVar("Shard"), TypeVar("Result")


class Member(NamedTuple):
    """An entry of a tar file that is no folder."""

    name: str  # as it is written; bytes that are not UTF-8 as Python has them in file names
    offset: int  # of its content
    size: int  # bytes of its content in the file
    kind: str = "file"  # or "link", "sparse", "special"
    late: bool = False  # after the end mark, where other readers have stopped


class TarReader:
    """The members of one tar file, which is closed by `with`.

    Raises:
        FileNotFoundError: it does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"shard {path} does not exist")
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._start, self._window = 0, b""

    def __enter__(self) -> TarReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        if not self._start <= offset <= offset + size <= self._start + len(self._window):
            self._start, self._window = offset, read_at(self._file.fileno(), offset, max(size, _WINDOW))
        at = offset - self._start
        return self._window[at : at + size]

    def members(self, start: int = 0, end: int | None = None) -> Iterator[tuple[str, int, int]]:
        """Yield (name, offset of the content, its size) of every regular file before the end mark, in order.

        `start` and `end` are those of a tar file inside the file. Raises ValueError as `entries`.
        """
        for entry in self.entries(start, end):
            if entry.late:
                return
            if entry.kind == "file":
                yield entry.name, entry.offset, entry.size

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[Member]:
        """Yield everything but folders, in order; what comes after the end mark is marked.

        Raises:
            ValueError: the file is cut short, damaged, or not an uncompressed tar file.
        """
        end = os.fstat(self._file.fileno()).st_size if end is None else end
        at, late, notes = start, False, _Notes()
        while True:
            header = self.read(at, min(_BLOCK, max(0, end - at)))
            if len(header) == _BLOCK and not any(header):
                at, late = at + _BLOCK, True
                notes.clear()
                continue
            try:
                if at == start:
                    _check_format(header)
                if len(header) < _BLOCK:
                    raise ValueError(f"is cut short after {end} bytes: its end mark is missing")
                member, at = self._entry(header, at, end, notes)
            except ValueError as error:
                if late:  # the archive itself is whole; `tar` says nothing of what may follow
                    return
                raise ValueError(f"shard {self.path} {error}") from error
            if member is not None:
                yield member._replace(late=late) if late else member
                notes.clear()

    def _entry(self, header: bytes, at: int, end: int, notes: _Notes) -> tuple[Member | None, int]:
        """The member of a header at a place, None for a folder or a note on the next one; where the next header is."""
        if not _checksum_fits(header):
            raise ValueError(f"is damaged at byte {at}")
        kind, content = header[156:157], at + _BLOCK
        try:
            size = _number(header[124:136])
            more = header[482] if kind == b"S" else 0  # GNU: where the parts of a file with holes lie
            while more:
                more = self.read(content, _BLOCK)[504]
                content += _BLOCK
        except (ValueError, IndexError) as error:
            raise ValueError(f"is damaged at byte {at}") from error
        if kind in _FILES and notes.size is not None:
            size = notes.size
        if kind in (*_LINKS, *_DEVICES, _FOLDER) and size and self._starts_header(content):
            size = 0  # it is that of something else
        if content + size > end:
            raise ValueError(f"is cut short after {end} bytes: a member reaches to byte {content + size}")
        following = content + -(-size // _BLOCK) * _BLOCK  # padded to whole blocks
        if kind in _NOTES:
            try:
                if size > _LONGEST_NOTE:
                    raise ValueError(f"{size} bytes of notes on one member")
                notes.read(kind, self.read(content, size))
            except ValueError as error:
                raise ValueError(f"is damaged at byte {at}: {error}") from error
            return None, following
        name = notes.name or _header_name(header)
        if kind == _FOLDER or (
            kind in _FILES and name.endswith("/")
        ):  # the oldest tars have no kind for folders
            notes.clear()
            return None, following
        if kind in _FILES:
            what = "sparse" if notes.sparse else "file"
        else:
            what = "link" if kind in _LINKS else "sparse" if kind in (b"S", b"M") else "special"
        return Member(name, content, size, what), following

    def _starts_header(self, at: int) -> bool:
        header = self.read(at, _BLOCK)
        return len(header) < _BLOCK or not any(header) or _checksum_fits(header)


class _Notes:
    """What entries before a member say of it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.name: str | None = None
        self.size: int | None = None
        self.sparse = False

    def read(self, kind: bytes, content: bytes) -> None:
        """Add a GNU long name (L) or a pax header (x, X); ValueError if it is damaged."""
        if kind == b"L":
            self.name = _text(content)
        elif kind in (b"x", b"X"):  # g is for all members and tells nothing about one
            records = _pax(content)
            self.sparse = any(key.startswith("GNU.sparse.") for key in records)
            self.name = records.get("GNU.sparse.name") or records.get("path") or self.name
            if records.get("size"):
                if not re.fullmatch("[0-9]{1,19}", records["size"], re.ASCII):
                    raise ValueError(f"a size of {records['size']!r}")
                self.size = int(records["size"])
        if self.name is not None and len(os.fsencode(self.name)) > _LONGEST_NAME:
            raise ValueError(f"a name of more than {_LONGEST_NAME} bytes")


def read_shards(read: Callable[[Shard], Result], shards: Iterable[Shard]) -> Iterator[Result]:
    """What `read` returns for every shard, in order; threads read a few shards ahead."""
    pool, ahead = ThreadPoolExecutor(_SHARDS_AT_ONCE), deque[Future]()
    try:
        for shard in shards:
            ahead.append(pool.submit(read, shard))
            if len(ahead) > 2 * _SHARDS_AT_ONCE:  # bounds the results in memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Bytes at a place of an open file, fewer at its end; the position of the descriptor does not matter."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more  # network file systems may give less than was asked for
    return content


def _check_format(header: bytes) -> None:
    """Raise ValueError unless the file begins as a tar file does, or is too short to say."""
    what = next((what for start, what in _OTHER_FORMATS.items() if header.startswith(start)), None)
    if len(header) == _BLOCK and _checksum_fits(header) or len(header) < _BLOCK and what is None:
        return
    found = f": it is {what}" if what else ""
    advice = "; samples are read at any place, so decompress it" if "compressed" in found else ""
    raise ValueError(f"is not an uncompressed tar file{found}{advice}")


def _checksum_fits(header: bytes) -> bool:
    try:
        stored = _number(header[148:156])
    except ValueError:
        return False
    # Of all bytes, with blanks in place of the checksum itself.
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if total == stored:
        return True
    # The oldest writers took bytes for signed numbers.
    return total - 256 * sum(b > 127 for b in header[:148] + header[156:]) == stored


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for what does not fit into octal digits
        if field[0] & 0x40:
            raise ValueError("a negative number")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    digits = field.strip(b" \0").split(b"\0", 1)[0].strip() or b"0"
    if not digits.isdigit():  # int() also takes signs and underscores
        raise ValueError(f"{field!r} is no octal number")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _header_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if header[257:263] == b"ustar\0" and prefix else name


def _pax(content: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n" of an extended header; ValueError if they are none."""
    records, at = {}, 0
    while at < len(content) and content[at]:  # some writers pad it with zeros
        match = re.compile(rb"([0-9]{1,8}) ([^=]+)=").match(content, at)
        stop = at + int(match[1]) if match else 0
        if not match or not match.end() < stop <= len(content) or content[stop - 1 : stop] != b"\n":
            raise ValueError("records of a pax header do not fit their lengths")
        records[match[2].decode("utf-8", "replace")] = content[match.end() : stop - 1].decode(
            "utf-8", "surrogateescape"
        )
        at = stop
    return records
