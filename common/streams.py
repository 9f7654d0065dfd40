"""Standard output and error that may be closed, full or gone without harm to the program.

A training that runs for days must not end because the terminal, or `head` at the other end of a pipe, has.
"""

import contextlib
import io
import os
import select
import sys

NAMES = {1: "standard output", 2: "standard error"}
_descriptors = {1: 1, 2: 2}  # where the streams are written


class _Lenient(io.RawIOBase):
    """Standard output (1) or error (2); what cannot be written is dropped, and the other one says so once."""

    def __init__(self, stream: int, quiet: bool) -> None:
        self._stream, self._told = stream, quiet

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return _descriptors[self._stream]

    def isatty(self) -> bool:
        return os.isatty(self.fileno())

    def write(self, data: bytes) -> int:
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:  # another program has set a terminal or a pipe so
            select.select([], [self.fileno()], [], 1.0)
            return 0
        except OSError as error:
            if not self._told:
                self._told = True
                reason = f"cannot be written ({error.strerror}); the program goes on without it"
                _write(3 - self._stream, f"warning: {NAMES[self._stream]} {reason}\n")
            return len(data)


def secure_streams(*, quiet: bool = False) -> None:
    """Let `sys.stdout` and `sys.stderr` drop what cannot be written; call it once, when a program starts.

    What the encoding of a stream does not have is escaped. A stream that was closed before (`>&-`) is the null device.
    `quiet` programs only print, and say nothing of a reader that has left.
    """
    for number in (0, 1, 2):  # else the next file gets the number, and with it what libraries write to it
        stream = (sys.stdin, sys.stdout, sys.stderr)[number]
        if stream is None:
            _descriptors[number] = _null_device(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is not None and before is not getattr(sys, f"__{name}__"):
            continue  # somebody else's: a test, a notebook
        encoding = "utf-8" if before is None else before.encoding
        raw = io.BufferedWriter(_Lenient(number, quiet))
        setattr(sys, name, io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True))


def _null_device(number: int) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(null, number)
        os.close(null)
        null = number
    os.set_inheritable(null, True)
    return null  # another number if a library has opened a file under this one already


def write_error(text: str) -> None:
    """Write to standard error at once, from any thread and from signal handlers; what cannot be written is dropped."""
    _write(2, text)


def _write(stream: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_descriptors[stream], text.encode(errors="backslashreplace"))
