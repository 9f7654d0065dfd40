"""Locks that the kernel takes back when their process ends, however it ends: of outputs, and of shared caches."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common import distributed
from common.console import say, warn
from storage.files import check_output_file, check_output_folder, errors_named

PATIENCE = 3.0  # seconds: a job that was killed may still be giving back its memory
LEASE = 120.0  # seconds until a server of network disks gives back the lock of a machine that is gone
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made if necessary; raises OSError where files cannot be locked."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open too
        os.close(file)


@contextmanager
def reserved_folder(path: str | Path, *, key: str = "output", training: bool = False) -> Iterator[None]:
    """Make a folder, see that it can be written, and keep other jobs out of it while the block runs.

    Every process of a job calls it, before any work; process 0 holds `.lock` in the folder, once however often it
    reserves it. A folder that was made for the block and is empty in the end is removed.

    Args:
        key: the option that names the folder.
        training: whether the job is a training; others keep out of the folders of trainings.

    Raises:
        ValueError: another job writes the folder, it belongs to a training, or the path begins with `~`.
        ValueError, WriteError: as `check_output_folder`.
    """
    with _reserved(Path(path), key, folder=True):
        if not training and distributed.on_main((Path(path) / "checkpoints").is_dir):
            raise ValueError(f"{key}={path} is the folder of a training; name one of its own")
        yield


@contextmanager
def reserved_file(path: str | Path, *, key: str = "output") -> Iterator[None]:
    """As `reserved_folder`, for a file, by `.<name>.lock` beside it."""
    with _reserved(Path(path), key, folder=False):
        yield


@contextmanager
def one_at_a_time(path: str | Path, *, key: str = "output") -> Iterator[None]:
    """As `reserved_file` on one process alone, and waits for another job, which may make just this file."""
    lock = _lock_file(Path(path), folder=False)
    _take(Path(path), key, lock, folder=False, wait=True)
    try:
        yield
    finally:
        _give_back(lock)


@dataclass
class _Reservation:
    file: int
    owner: int  # the process: a forked one inherits this record, but no lock
    made: list[Path]  # folders, the innermost first
    users: int = field(default=1)


_held: dict[
    Path, _Reservation
] = {}  # by lock file: a second lock of one process would be given, and end the first


@contextmanager
def _reserved(path: Path, key: str, *, folder: bool) -> Iterator[None]:
    lock = _lock_file(path, folder)
    distributed.on_main(lambda: _take(path, key, lock, folder, wait=False))
    try:
        yield
    finally:
        if distributed.is_main():
            _give_back(lock)


def _lock_file(path: Path, folder: bool) -> Path:
    path = Path(os.path.realpath(path))
    return path / ".lock" if folder else path.with_name(f".{path.name}.lock")


def _take(path: Path, key: str, lock: Path, folder: bool, wait: bool) -> None:
    known = _held.get(lock)
    if known is not None and known.owner == os.getpid():
        known.users += 1
        return
    if path.parts[:1] and path.parts[0].startswith("~"):  # else a folder of this name would be made here
        raise ValueError(f"{key}={path}: only ~/ stands for a home folder; write the whole path")
    made = [f for f in (lock.parent, *lock.parent.parents) if not f.exists()]
    check = partial(check_output_folder if folder else check_output_file, path, key=key)
    with errors_named(Path(f"{key}={path}")):
        try:
            file = _locked(f"{key}={path}", lock, wait)
        except OSError:
            check()  # it says better what is wrong
            raise
    _held[lock] = _Reservation(file, os.getpid(), made)
    try:
        check()  # with the lock: another job that starts now makes and removes folders
    except BaseException:
        _give_back(lock)
        raise


def _locked(what: str, lock: Path, wait: bool) -> int:
    """The lock file, open and locked; raises ValueError if another job holds it."""
    # A record lock, and no `flock`: data workers do not inherit it, and network disks know it.
    start, told = time.monotonic(), False
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another job has just removed its empty folder
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                warn(f"{what} cannot be locked here ({error.strerror}); do not start two jobs that write it")
                return _signed(file)
            holder, host = _holder(file)
            os.close(file)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            waited, elsewhere = time.monotonic() - start, host not in ("", socket.gethostname())
            if not wait and waited > (LEASE if elsewhere else PATIENCE):
                advice = "wait until it has ended, stop it, or choose another output"
                raise ValueError(f"{what} is being written by {holder}; {advice}") from None
            if not told and waited > PATIENCE:
                until = "" if wait else f" for {LEASE:.0f} s, in case that machine is gone"
                say(f"{what} is being written by {holder}; waiting{until}")
                told = True
            time.sleep(0.1)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                return _signed(file)
        os.close(file)  # its last holder has removed it meanwhile


def _signed(file: int) -> int:
    with contextlib.suppress(OSError):  # of another user, who may be the next to lock it
        os.fchmod(file, 0o666)
    about = {"process": os.getpid(), "host": socket.gethostname(), "program": Path(sys.argv[0]).name}
    about["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(about).encode(), 0)
    return file


def _holder(file: int) -> tuple[str, str]:
    """Who holds the lock, and on which machine ('' if it does not say)."""
    try:
        about = json.loads(os.pread(file, 4096, 0))
        return "process {process} on {host} ({program}, since {since})".format(**about), about["host"]
    except (OSError, ValueError, KeyError, TypeError):
        return "another process", ""


def _give_back(lock: Path) -> None:
    held = _held.get(lock)
    if held is None or held.owner != os.getpid():
        return
    held.users -= 1
    if held.users:
        return
    del _held[lock]
    with contextlib.suppress(OSError):
        lock.unlink()  # before the lock ends: who waits for this file finds that it is not the one any more
    os.close(held.file)
    for folder in held.made:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing was written
