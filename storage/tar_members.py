"""Where the members of an uncompressed tar file lie, found in one pass over its headers.

Format: POSIX.1-1988 ustar with GNU long names and pax extended headers. Every member is a 512-byte header and its
content padded to 512 bytes; a block of zeros ends the archive.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_BLOCK = 512
# One request brings the headers of many small members; over a network a request takes longer than a megabyte.
_WINDOW = 1 << 20
_SHARDS_AT_ONCE = 16

Shard, Result = TypeVar("Shard"), TypeVar("Result")


class TarReader:
    """The regular files of one tar file, which is closed by `with`.

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
        """Yield (name, offset of the content, its size) of every regular file, in order.

        ``start`` and ``end`` are those of a tar file inside the file.

        Raises:
            ValueError: the file is cut short, damaged, or not an uncompressed tar file.
        """
        end = os.fstat(self._file.fileno()).st_size if end is None else end
        at, longer_name, longer_size = start, None, None
        while True:
            header = self.read(at, _BLOCK)
            if len(header) < _BLOCK or at + _BLOCK > end:
                raise ValueError(f"shard {self.path} is cut short after {end} bytes: its end mark is missing")
            if not any(header):
                return
            if not _checksum_fits(header):
                what = f"is damaged at byte {at}" if at > start else "is not an uncompressed tar file"
                raise ValueError(f"shard {self.path} {what}")
            size, content = _number(header[124:136]), at + _BLOCK
            kind = header[156:157]
            if kind in (b"0", b"\0") and longer_size is not None:
                size = longer_size
            if content + size > end:
                raise ValueError(
                    f"shard {self.path} is cut short after {end} bytes: a member reaches to byte {content + size}"
                )
            if kind == b"L":  # GNU: the name of the next member
                longer_name = _text(self.read(content, size))
            elif kind == b"x":  # pax: what the header of the next member has no room for
                records = _pax(self.read(content, size))
                longer_name = records.get("path", longer_name)
                longer_size = int(records["size"]) if "size" in records else None
            else:
                if kind in (b"0", b"\0"):
                    yield longer_name or _header_name(header), content, size
                longer_name = longer_size = None
            at = content + -(-size // _BLOCK) * _BLOCK  # padded to whole blocks


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


def _checksum_fits(header: bytes) -> bool:
    try:
        stored = _number(header[148:156])
    except ValueError:
        return False
    # Of all bytes, with blanks in place of the checksum itself.
    return sum(header) - sum(header[148:156]) + 8 * ord(" ") == stored


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for what does not fit into octal digits
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _header_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if header[257:263] == b"ustar\0" and prefix else name


def _pax(content: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n" of an extended header."""
    records = {}
    while content:
        length, _, _ = content.partition(b" ")
        record, content = content[len(length) + 1 : int(length) - 1], content[int(length) :]
        key, _, value = record.partition(b"=")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
    return records
