"""A run that is stopped at any moment, by one process or another, ends like one that was not."""

import os
import signal
import socket
import time
import traceback

import pytest
import torch
from torch import multiprocessing

from common.build import ConfigError
from tests.training.test_trainer import Toy, assert_same, quick, records, steps, train
from training import checkpoint

pytestmark = pytest.mark.usefixtures("engine", quick.__name__)
OPTIONS = {"evaluate_every": 4, "preview_every": 4, "log_every": 1}
# Checkpoints are due at 3, 6 and 8, evaluations and previews at 4 and 8.
MOMENTS = [("step", 3), ("step", 4), ("step", 8), ("save", 3), ("save", 8)]
MOMENTS += [(what, step) for what in ("evaluate", "preview") for step in (4, 8)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, **OPTIONS)
    return folder


class Stopped(Toy):
    """A toy whose process gets a signal at one moment of one step."""

    def __init__(self, moment: str, step: int) -> None:
        super().__init__()
        self.moment, self.step, self.now, self.passed = moment, step, 0, False

    def reach(self, moment: str) -> None:
        if (moment, self.now) == (self.moment, self.step):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # long work would follow here
            self.passed = True

    def loss(self, batch, context):
        self.now = context.step + 1
        self.reach("step")
        return super().loss(batch, context)

    def evaluate(self, model, device):
        self.reach("evaluate")
        return super().evaluate(model, device)

    def preview(self, model, device):
        self.reach("preview")
        return super().preview(model, device)


@pytest.mark.parametrize(("moment", "step"), MOMENTS)
def test_a_signal_at_any_moment_changes_nothing(tmp_path, whole, monkeypatch, moment, step, capfd):
    tasks = []
    with monkeypatch.context() as patch:
        if moment == "save":
            write = checkpoint.write_json
            patch.setattr(checkpoint, "write_json", lambda *a: (tasks[0].reach("save"), write(*a)))
        try:
            train(tmp_path, make=lambda: tasks.append(Stopped(moment, step)) or tasks[0], **OPTIONS)
        except SystemExit as end:
            assert end.code == 143
    task, (out, told) = tasks[0], capfd.readouterr()
    beside = moment in ("evaluate", "preview")  # ended early, because nothing depends on it
    assert task.passed != beside
    if moment != "save":
        plan = "saving now and stopping" if beside else f"saving after step {step} and stopping"
        kept = {3: "there is no checkpoint yet", 4: "the last checkpoint is step 3"}
        kept[8] = f"the last checkpoint is step {8 if beside else 6}"
        assert f"SIGTERM received: {plan}; a second signal ends at once, {kept[step]}\n" in told
        assert f"stopped by signal 15 after step {step}; run the same command again" in out
        assert steps(tmp_path)[-1] == step
    assert "Traceback" not in out + told
    train(tmp_path, **OPTIONS)
    assert_same(whole, tmp_path)
    kinds = [[(r["step"], r["kind"], r.get("output")) for r in records(f)] for f in (whole, tmp_path)]
    assert kinds[0] == kinds[1]
    for name in ("metrics.json", "shown.png", "previews/shown-00000004.png", "previews/shown-00000008.png"):
        assert (tmp_path / name).is_file()
    assert (tmp_path / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


TIMEOUT = 6.0  # seconds, of the collectives of a step


def _two(rank: int, port: int, folder, log) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    try:
        _stop_and_resume(rank, folder)
    except BaseException:
        (log / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)  # the other one may wait
    os._exit(0)


def _stop_and_resume(rank: int, folder) -> None:
    options = {"timeout_minutes": TIMEOUT / 60, "per_gpu_batch_size": 2, "preview_every": 5, "log_every": 8}
    # One process gets a signal: both stop after the same step, one later.
    made = []
    with pytest.raises(SystemExit) as end:
        train(folder, make=lambda: made.append(Stopped("step" if rank else "", 4)) or made[0], **options)
    assert end.value.code == 143 and made[0].now == 5 and made[0].passed == bool(rank)
    # Listings of a network disk may be old on one of them; what process 0 does alone may take long.
    list_steps, save, preview = (
        checkpoint.CheckpointFolder.steps,
        checkpoint.CheckpointFolder.save,
        Toy.preview,
    )
    if rank:
        checkpoint.CheckpointFolder.steps = lambda self: []
    slow = {"save": TIMEOUT + 1.5, "preview": TIMEOUT + 1.5}

    def slow_save(self, *arguments):
        time.sleep(slow.pop("save", 0))
        return save(self, *arguments)

    def slow_preview(self, *arguments):
        time.sleep(slow.pop("preview", 0))
        return preview(self, *arguments)

    checkpoint.CheckpointFolder.save, Toy.preview = slow_save, slow_preview
    resumed = train(folder, **options)
    assert resumed.seen[0] // 4 == 5 and (rank or not slow)
    # An error of one is the error of both.
    with pytest.raises(ConfigError, match=r"experiment\.seed=2, but .* was begun with 1"):
        train(folder, seed=2, **options)
    checkpoint.CheckpointFolder.steps = list_steps


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_stop_and_resume_as_one(tmp_path):
    """By a signal to one of them, with listings of the folder that differ, and with work of one beyond the time-out."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = (port, tmp_path / "run", tmp_path)
    processes = [context.Process(target=_two, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    told = "".join(p.read_text() for p in tmp_path.glob("*.txt"))
    assert [process.exitcode for process in processes] == [0, 0], told
    assert steps(tmp_path / "run")[-1] == 8
