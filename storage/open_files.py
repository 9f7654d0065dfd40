"""Files that stay open between the samples that are read from them."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable

from storage.tar_members import read_at


class OpenFiles:
    """Reads at any place of many files, of which the `limit` last used stay open.

    Threads share it, and a forked process opens files of its own. ``opener`` gives the descriptor of a path.
    """

    def __init__(self, limit: int = 256, opener: Callable[[str], int] | None = None) -> None:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # 256 on some systems
        self._limit, self._opener = min(limit, max(allowed // 4, 1)), opener
        self._forget()

    def __reduce__(self) -> tuple:
        return type(self), (self._limit, self._opener)

    def _forget(self) -> None:
        self._files: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer at its end; raises OSError."""
        file = self._open(path)  # held until the end of the read: another thread may close it otherwise
        try:
            return read_at(file.number, offset, size)
        except OSError:  # a network file system may have forgotten what was open
            with self._lock:
                self._files.pop(path, None)
            file = self._open(path)
            return read_at(file.number, offset, size)

    def close(self) -> None:
        """Close all files, once no thread reads them."""
        if self._process == os.getpid():
            with self._lock:
                self._files.clear()

    def _open(self, path: str) -> _Descriptor:
        if self._process != os.getpid():  # the lock may have been held when the process was forked
            self._forget()
        with self._lock:
            file = self._files.get(path)
            if file is not None:
                self._files.move_to_end(path)
                return file
        # Not under the lock: a remote file is fetched here, and others can be read meanwhile.
        file = _Descriptor(os.open(path, os.O_RDONLY) if self._opener is None else self._opener(path))
        with self._lock:
            self._files[path] = file
            if len(self._files) > self._limit:
                self._files.popitem(last=False)
        return file


class _Descriptor:
    """Closed when nothing refers to it any more, so never under a thread that reads from it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)
