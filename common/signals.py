"""Signals that ask a program to stop: SIGTERM (schedulers), SIGINT (Ctrl-C) and SIGHUP (a terminal that closes).

Python runs signal handlers between two instructions of the main thread, which a compilation or a wait for other
processes may hold for minutes. Here a thread waits for the byte that arrives at once (`signal.set_wakeup_fd`): it says
what will happen, and ends the program when it is asked a second time.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from common.streams import write_error

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# `timeout` and wrappers pass a signal on that the process group got too, launchers pass on what a scheduler has sent to
# every process: within this time (seconds) it is one request.
REPEAT, LAUNCHED_REPEAT = 0.3, 5.0
GRACE = 10.0  # seconds for the main thread to end a program, which a wait for other processes may hold

_held_back: list[bool] = []  # an entry per block of `held_back`
_late: list[int] = []  # signals that arrived inside one


class SignalWatch:
    """While the block runs, a first stop signal is announced at once, and a second one ends the program at once.

    Signals that were ignored before stay ignored (`nohup` ignores SIGHUP). In a thread besides the main thread, which
    Python gives no signals, the block changes nothing.

    An error while the program stops is told in one line, because other processes that are gone cause many. Mistakes of
    the user and of the disk (ValueError, OSError) pass through.
    """

    signal: int | None = None  # the first one that arrived
    ends = True  # a first signal ends the program: SystemExit(128 + its number) in the main thread

    def plan(self) -> str:
        """What will happen now; called by another thread."""
        return "ending; what is complete on the disk stays"

    def kept(self) -> str:
        """What a second signal does no harm to; called by another thread."""
        return "what is complete on the disk stays"

    def react(self, number: int) -> None:
        """Act on a signal, in the main thread."""
        if self.ends:
            raise SystemExit(128 + number)

    def __enter__(self) -> "SignalWatch":
        self._before: dict[int, Any] | None = None
        self._lock, self._handled = threading.RLock(), False  # a handler may interrupt another
        if threading.current_thread() is not threading.main_thread():
            return self
        launched = "LOCAL_RANK" in os.environ
        self._repeat = LAUNCHED_REPEAT if launched else REPEAT
        self._speaks = os.environ.get("RANK", "0") == "0"  # process groups may not exist yet, or not any more
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {}
        for number in STOP:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._again
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None and not (
            self.ends and self.signal
        ):  # else the thread ends what hangs on its way out
            for number, handler in self._before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            signal.set_wakeup_fd(self._wakeup)
            sys.unraisablehook = self._unraisable
            self._writer.close()
        if self.signal and isinstance(error, Exception) and not isinstance(error, (ValueError, OSError)):
            if os.environ.get("TRACEBACK"):
                return
            text = " ".join(str(error).split())
            self._print(f"stopped by {signal_name(self.signal)}, in the middle of it {kind.__name__}: {text}")
            raise SystemExit(128 + self.signal) from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._first(number)
        if _held_back:  # blocking keeps the signal from this thread only
            _late.append(number)
            return
        repeated, self._handled = self._handled, True
        if not (repeated and self.ends):  # a second SystemExit would interrupt what the first one cleans up
            self.react(number)

    def _again(self, unraisable: Any) -> None:
        """Where Python cannot raise an error (in a destructor), it calls this instead: the thread tries once more."""
        if self.signal and issubclass(unraisable.exc_type, SystemExit):
            self._handled = False
        else:
            self._unraisable(unraisable)

    def _first(self, number: int) -> None:
        """Announce what a first signal does: on the thread that gets to it first."""
        with self._lock:
            if self.signal is None:
                self.signal = number
                later = f" more than {self._repeat:g} s later" if self._repeat > 1 else ""
                again = "" if self.ends else f"; a second signal{later} ends at once, {self.kept()}"
                self._print(f"{signal_name(number)} received: {self.plan()}{again}")

    def _watch(self) -> None:
        number = self._next_signal()
        if number is None:
            return
        self._first(number)
        deadline = time.monotonic() + GRACE
        for _ in range(3):
            time.sleep(REPEAT / 3)
            if (
                not self._handled
            ):  # the main thread was about to begin a wait, which the signal could not end yet
                signal.pthread_kill(threading.main_thread().ident, number)
        time.sleep(self._repeat - REPEAT)
        self._reader.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(64)  # however late this thread wakes up, these are the same request
        self._reader.settimeout(max(0.01, deadline - time.monotonic()) if self.ends else None)
        try:
            number = self._next_signal()
        except TimeoutError:
            os._exit(128 + self.signal)
        if number is not None:
            self._print(f"{signal_name(number)} again: ending at once; {self.kept()}")
            os._exit(128 + number)

    def _next_signal(self) -> int | None:
        """Wait for the next stop signal; None if the block has ended."""
        while received := self._reader.recv(1):
            if received[0] in self._before:  # other signals with a handler arrive here too
                return received[0]
        return None

    def _print(self, text: str) -> None:
        if self._speaks:
            # Not `print`: the main thread may hold the lock of the stream. A line of its own after a progress bar.
            start = "\n" if sys.stderr.isatty() else ""
            write_error(f"{start}{text}\n")


def signal_name(number: int) -> str:
    """'SIGTERM' for 15."""
    return signal.Signals(number).name


class PassedOn(SignalWatch):
    """While the block runs, signals go to a child process, which decides what happens."""

    ends = False

    def __init__(self, child: subprocess.Popen, name: str) -> None:
        self._child, self._name = child, name

    def plan(self) -> str:
        return f"passed on to {self._name}"

    def kept(self) -> str:
        return f"without waiting for {self._name}"

    def react(self, number: int) -> None:
        self._child.send_signal(number)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Block stop signals for processes that are started here; they stay blocked there (see `obey_parent`).

    This process acts on them after the block, so that it leaves nothing half started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    _held_back.append(True)
    try:
        yield
    finally:
        _held_back.pop()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if _late and not _held_back:
        number = _late[0]
        _late.clear()
        signal.getsignal(number)(number, None)


def obey_parent() -> None:
    """In a process started with stop signals held back: only a SIGTERM of the parent ends it.

    Schedulers signal all processes of a job, and the main process needs its children until it has saved.
    """
    signal.set_wakeup_fd(-1)  # that of the parent
    _held_back.clear()
    sys.excepthook = _report_if_ours
    if hasattr(signal, "sigwaitinfo"):  # macOS does not say who sent a signal: there, none ends it
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _report_if_ours(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(
        kind, (ConnectionError, EOFError)
    ):  # handing over a result that the parent ends without
        sys.__excepthook__(kind, error, traceback)


def _end_with_parent(parent: int) -> None:
    while True:
        received = signal.sigwaitinfo(STOP)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
