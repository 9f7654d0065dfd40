"""When one process of a job fails or dies, all end soon, and the one with the cause is heard."""

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from common import config, peers

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(peers, "GRACE", 0.6)


@dataclasses.dataclass
class Nothing:
    """No options."""


def stop_by_error() -> None:
    time.sleep(0.2)
    raise ValueError("shard 7 is damaged")


def stop_by_bug() -> None:
    raise KeyError("a bug")


def lose_contact() -> None:
    time.sleep(0.5)  # the cause is known before, or soon after
    raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:37543")


def die_beside_a_data_worker() -> None:
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    time.sleep(30)


def finish() -> None:
    pass


def stop_as_agreed() -> None:
    sys.exit(128 + signal.SIGTERM)


def be_visited() -> None:
    """Somebody else connects to the port of process 0."""
    for message in (b"GET / HTTP/1.0\r\n\r\n", b"\n", b'{"token": "guessed", "rank": 1, "host": "x"}\n'):
        with socket.create_connection(("localhost", peers._peers.listener.getsockname()[1])) as visitor:
            visitor.sendall(message)
            visitor.settimeout(10)
            assert visitor.recv(10) == b""  # hung up
    time.sleep(0.5)


def _run(rank: int, act, address, folder: Path) -> None:
    os.dup2(os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"TORCHELASTIC_ERROR_FILE": str(folder / f"{rank}.json")}
    sys.argv = ["program"]

    def gather(value):
        if rank == 0:
            for _ in range(2):
                address.put(value)
            return [value]
        return [address.get(timeout=20)]

    def main(_) -> None:
        peers.watch(rank, gather)
        time.sleep(0.3)
        act()

    config.run_script(main, Nothing, "")


def job(folder: Path, *acts) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, error outputs and notes for the launcher of three processes."""
    context = multiprocessing.get_context("fork")
    address = context.Queue()
    workers = [context.Process(target=_run, args=(i, act, address, folder)) for i, act in enumerate(acts)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 25  # less than `wait` waits
    while any(worker.exitcode is None for worker in workers):
        assert time.monotonic() < deadline, "they wait for each other"
        time.sleep(0.02)
    notes = [folder / f"{i}.json" for i in range(3)]
    said = [(folder / f"{i}.log").read_text() for i in range(3)]
    read = [json.loads(p.read_text())["message"]["message"] if p.exists() else "" for p in notes]
    return [worker.exitcode for worker in workers], said, read


def test_a_killed_process_ends_all(tmp_path):
    codes, said, notes = job(tmp_path, lose_contact, die_beside_a_data_worker, wait)
    assert codes == [1, -signal.SIGKILL, 1]
    assert said[0].startswith(f"error: process 1 on {socket.gethostname()} failed: it ended without an error")
    assert said[0].count("\n") == 1 and said[1:] == ["", ""]
    assert notes[0] == notes[2] != "" and notes[1] == ""


def test_process_0_may_be_the_killed_one(tmp_path):
    codes, said, notes = job(tmp_path, die_beside_a_data_worker, wait, lose_contact)
    assert codes == [-signal.SIGKILL, 1, 1]
    assert notes[1] == notes[2] and said[1] == f"error: {notes[1]}; all processes stop\n" and said[2] == ""


def test_the_error_of_one_process_is_the_only_one_shown(tmp_path):
    codes, said, notes = job(tmp_path, lose_contact, wait, stop_by_error)
    assert codes == [1, 1, 1] and said == ["", "", "error: shard 7 is damaged\n"]
    assert notes[2] == "shard 7 is damaged" and notes[0] == notes[1]
    assert notes[0] == f"process 2 on {socket.gethostname()} failed: shard 7 is damaged"


def test_a_bug_shows_its_traceback_and_an_error_of_all_is_told_once(tmp_path):
    codes, said, _ = job(tmp_path, lose_contact, stop_by_bug, wait)
    assert codes == [1, 1, 1] and "KeyError: 'a bug'" in said[1] and said[0] == said[2] == ""
    (tmp_path / "all").mkdir()
    codes, said, _ = job(tmp_path / "all", stop_by_error, stop_by_error, stop_by_error)
    assert codes == [1, 1, 1] and sorted(said) == ["", "", "error: shard 7 is damaged\n"]


def test_processes_may_finish_at_different_times_and_strangers_are_ignored(tmp_path):
    codes, said, notes = job(tmp_path, be_visited, finish, finish)
    assert codes == [0, 0, 0] and said == notes == ["", "", ""]
    (tmp_path / "again").mkdir()
    codes, said, notes = job(tmp_path / "again", stop_as_agreed, lambda: time.sleep(1), finish)
    assert codes == [143, 0, 0] and said == ["", "", ""] and notes == ["stopped by SIGTERM", "", ""]


def test_who_hangs_up_on_a_process_that_has_left_has_not_failed():
    first = peers.Peers(0, "token")
    port = first.listen()
    others = [socket.create_connection(("localhost", port)) for _ in range(2)]
    links = [first.listener.accept()[0] for _ in others]
    for rank, link in enumerate(links, start=1):
        first._add(link, rank, "host")
    first.leave()
    others[0].close()
    first._read(links[0])
    assert first.first is None and others[1].recv(1000) == b'{"end": 0}\n'
    first._close()


def test_alone_nothing_is_watched(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "note"))
    peers.yield_to_cause(RuntimeError("NCCL error"))
    assert not peers.fail("wrong")
    assert json.loads((tmp_path / "note").read_text())["message"]["message"] == "wrong"
    peers.leave()


@pytest.mark.parametrize("master", ["localhost", "127.0.0.1"])
def test_the_address_of_process_0(monkeypatch, master):
    monkeypatch.setenv("MASTER_ADDR", master)
    assert peers._own_address() == master
