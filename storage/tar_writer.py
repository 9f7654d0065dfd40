"""Tar shards that hold the same bytes whenever they are made of the same members."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from types import TracebackType

_BLOCK = 512
_END = 2 * _BLOCK  # two blocks of zeros


class TarWriter:
    """Writes members one after the other; `sha256` and `size` are those of the file, once the block has ended."""

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
        self._hash, self.size = hashlib.sha256(), 0

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._write(bytes(_END))
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()

    def add(self, name: str, content: bytes) -> None:
        """Append a file that anybody may read, without owner and time."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        self._write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        self._write(content)
        self._write(bytes(-len(content) % _BLOCK))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.size += len(content)


def stored_bytes(size: int) -> int:
    """Bytes that a member of `size` bytes takes, with its header."""
    return _BLOCK - (-size // _BLOCK) * _BLOCK
