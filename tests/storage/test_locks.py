import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import REPOSITORY
from storage import locks
from storage.files import WriteError
from storage.locks import one_at_a_time, reserved_file, reserved_folder

OTHER = """
import sys, time
from storage.locks import reserved_file, reserved_folder
with (reserved_folder if sys.argv[1] == "folder" else reserved_file)(sys.argv[2]):
    if len(sys.argv) > 3 and not __import__("os").fork():
        time.sleep(60)  # as a data worker, which outlives a killed parent for a moment
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.0)


@pytest.fixture
def other():
    """Starts a process that reserves a path until its standard input is closed."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            start_new_session=True,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()
        process.wait()


def test_a_second_job_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path, other, monkeypatch):
    folder = tmp_path / "run"
    first = other("folder", folder, "with a child")
    with pytest.raises(ValueError) as error, reserved_folder(folder, key="experiment.output_dir"):
        pass
    text = str(error.value)
    assert f"experiment.output_dir={folder} is being written by process {first.pid} on " in text
    assert "\n" not in text and "choose another output" in text
    os.kill(first.pid, signal.SIGKILL)
    monkeypatch.setattr(locks, "PATIENCE", 60.0)  # until the kernel has ended it
    with reserved_folder(folder):  # although its child lives, and its lock file is there
        assert (folder / ".lock").read_text().startswith(f'{{"process": {os.getpid()}')


def test_a_job_on_another_machine_is_waited_for(tmp_path, other, monkeypatch, capsys):
    other("folder", tmp_path)
    monkeypatch.setattr(locks.socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(locks, "LEASE", 0.3)
    with pytest.raises(ValueError, match="is being written by process"), reserved_folder(tmp_path):
        pass
    assert "waiting for 0 s, in case that machine is gone" in capsys.readouterr().out


def test_no_other_program_writes_into_the_folder_of_a_training(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with reserved_folder(tmp_path, training=True):
        pass
    with pytest.raises(ValueError, match="is the folder of a training"), reserved_folder(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


def test_an_output_file_is_reserved_beside_it_or_waited_for(tmp_path, other, capsys):
    path = tmp_path / "made/for/it/x.tokens"
    first = other("file", path)
    link = tmp_path / "link"
    link.symlink_to(path.parent)
    with (
        pytest.raises(ValueError, match=f"output={link}/x.tokens is being written"),
        reserved_file(link / path.name),
    ):
        pass
    first.stdin.close()
    with one_at_a_time(path):
        path.write_text("result")
    assert [p.name for p in path.parent.iterdir()] == ["x.tokens"]
    assert "waiting" in capsys.readouterr().out or first.wait(60) == 0


def test_nothing_is_left_of_work_that_was_refused(tmp_path):
    with pytest.raises(KeyError), reserved_folder(tmp_path / "a/b"), reserved_folder(tmp_path / "a/b"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_one_process_may_reserve_twice(tmp_path):
    with reserved_folder(tmp_path):
        with reserved_folder(tmp_path / "x" / ".."):
            pass
        assert (tmp_path / ".lock").is_file()
    assert not list(tmp_path.iterdir())


def test_what_is_no_folder_no_file_or_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for reserve, path, message in (
        (reserved_folder, "file", "output=.*file is a file, not a folder"),
        (reserved_folder, "file/below", "output=.*below: .*file is a file, not a folder"),
        (reserved_file, "folder", "output=.*folder is a folder; name a file"),
        (reserved_file, "file/below", "output=.*below: .*file is a file, not a folder"),
        (reserved_file, Path("~"), "output=~: only ~/ stands for a home folder"),
        (reserved_folder, Path("~somebody/x"), "output=~somebody/x: only ~/ stands for"),
    ):
        with (
            pytest.raises((ValueError, WriteError), match=message),
            reserve(path if isinstance(path, Path) else tmp_path / path),
        ):
            pass

    def read_only(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "open", read_only)
    message = "output=.*folder cannot be written: Read-only file system"
    with pytest.raises(WriteError, match=message), reserved_folder(tmp_path / "folder"):
        pass


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with reserved_folder(tmp_path / "run"):
        pass
    assert "cannot be locked here (No locks available); do not start two jobs" in capsys.readouterr().err
    assert not Path(tmp_path / "run").exists()
