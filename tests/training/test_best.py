"""Early stop and the best weights: which evaluation decides, what a run keeps, and that a resumed run does the same."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from common.build import ConfigError
from common.config import read_yaml
from tests.training.test_trainer import Toy, records, steps, train, weights
from training.best import BestSoFar
from training.settings import TrainingSettings
from training.task import DecidingValue

pytestmark = pytest.mark.usefixtures("engine")

LOSSES = {2: 5.0, 4: 3.0, 6: 3.5, 8: 3.2, 10: 3.1, 12: 2.0}  # held out, by step
LOWER = DecidingValue(name="loss")


class Scripted(Toy):
    """A task whose held-out loss follows a script; the number of steps is part of its state."""

    stop_at = kill_at = None  # steps

    def __init__(self) -> None:
        super().__init__()
        count = nn.Module()
        count.register_buffer("steps", torch.zeros(()))
        self.state["count"] = count

    def loss(self, batch, context):
        if context.step + 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if context.step + 1 == self.kill_at:
            raise KeyboardInterrupt  # the run is gone, with no chance to save
        self.state["count"].steps.add_(1)
        return super().loss(batch, context)

    def deciding_value(self):
        return LOWER

    def evaluate(self, model, device):
        return {"loss": LOSSES[int(self.state["count"].steps)]}


def fit(folder, *, patience=2, **options):
    options = {"make": Scripted, "max_steps": 12, "evaluate_every": 2, "preview_every": 0, **options}
    return train(folder, patience=patience, keep_best=True, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("training.trainer.draw_curves", lambda folders, output: output.write_bytes(b"") > 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run that stops early, and what it printed."""
    return tmp_path_factory.mktemp("whole") / "run"


def assert_equal(one, two):
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def evaluations(folder):
    return [(r["step"], r["loss"]) for r in records(folder) if r["kind"] == "evaluate"]


def test_a_run_stops_and_keeps_its_best_weights(whole, tmp_path, capsys):
    task = fit(whole)
    out = capsys.readouterr().out
    assert len(task.seen) == 8 * 4 and steps(whole) == [6, 8]
    assert evaluations(whole) == [(2, 5.0), (4, 3.0), (6, 3.5), (8, 3.2)]
    assert "held-out loss (lower is better) decides" in out
    assert (
        "stopped early after step 8: held-out loss was 3 at step 4 and not better in the 2 evaluations since"
        " (training.patience=2)" in out
    )
    assert f"better on held-out data: load {whole / 'best'} (loss 3 at step 4, 3.2 at the end)" in out
    assert json.loads((whole / "best/metrics.json").read_text()) == {
        "step": 4,
        "loss": 3.0,
        "decided_by": "loss",
    }
    assert read_yaml(whole / "best/config.yaml") == read_yaml(whole / "config.yaml")
    assert (whole / "shown.png").is_file()  # though no picture was due
    fit(tmp_path, save_every=2, keep_checkpoints=9)
    for result, step in (("best/model.safetensors", 4), ("model.safetensors", 8)):
        averaged = load_file(tmp_path / f"checkpoints/step-{step:08d}/ema.safetensors")
        assert_equal(load_file(whole / result), averaged)
    fit(tmp_path / "short", max_steps=4)
    out = capsys.readouterr().out
    assert f"the last evaluation is the best (loss 3): {tmp_path / 'short/best'} has the same weights" in out


def test_run_again_it_is_finished_and_more_patience_goes_on(tmp_path, capsys):
    fit(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    capsys.readouterr()
    assert not fit(tmp_path).seen
    assert "is finished (stopped early after step 8: held-out loss was 3 at step 4" in (
        out := capsys.readouterr().out
    )
    assert "with more patience it goes on); nothing to do" in out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert len(fit(tmp_path, patience=3).seen) == 2 * 4 and steps(tmp_path)[-1] == 10
    assert len(fit(tmp_path, patience=None).seen) == 2 * 4
    assert json.loads((tmp_path / "best/metrics.json").read_text())["step"] == 12
    fit(tmp_path / "never", patience=None)
    for part in ("model.safetensors", "best/model.safetensors"):
        assert_equal(load_file(tmp_path / part), load_file(tmp_path / "never" / part))


def test_without_the_options_nothing_changes(tmp_path):
    train(tmp_path, make=Scripted, max_steps=8, evaluate_every=2)
    assert not (tmp_path / "best").exists()
    assert "best" not in json.loads((tmp_path / "checkpoints/step-00000008/state.json").read_text())


@pytest.mark.parametrize("save_every", [3, 8, 20])
@pytest.mark.parametrize("at", [5, 7, 8])
def test_killed_or_stopped_it_ends_the_same(tmp_path, at, save_every):
    """Whether the kill leaves best weights that are newer than the last checkpoint, or no checkpoint at all."""
    fit(tmp_path / "whole", save_every=save_every)

    class Killed(Scripted):
        kill_at = at

    class Stopped(Scripted):
        stop_at = at

    for name, make, end in (("killed", Killed, KeyboardInterrupt), ("stopped", Stopped, SystemExit)):
        with pytest.raises(end):
            fit(tmp_path / name, make=make, save_every=save_every)
        fit(tmp_path / name, save_every=save_every)
        assert evaluations(tmp_path / name) == evaluations(tmp_path / "whole")
        for part in ("model.safetensors", "best/model.safetensors"):
            assert_equal(load_file(tmp_path / name / part), load_file(tmp_path / "whole" / part))
        for part in ("metrics.json", "best/metrics.json"):
            assert (tmp_path / name / part).read_text() == (tmp_path / "whole" / part).read_text()


@pytest.mark.parametrize("when", ["judged", "half"])
def test_killed_while_the_best_weights_are_written(tmp_path, monkeypatch, when):
    from training.checkpoint import CheckpointFolder

    save = CheckpointFolder.save_best

    def killed(self, step, *rest):
        if step == 4:
            raise KeyboardInterrupt
        save(self, step, *rest)

    with monkeypatch.context() as patch:
        if when == "judged":
            patch.setattr(CheckpointFolder, "save_best", killed)
        else:
            patch.setattr("training.checkpoint.write_json", lambda path, value: _interrupt(path, value))
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, save_every=2)
    assert not list((tmp_path / "best").glob("*.part"))
    fit(tmp_path, save_every=2)
    assert json.loads((tmp_path / "best/metrics.json").read_text()) == {
        "step": 4,
        "loss": 3.0,
        "decided_by": "loss",
    }
    assert steps(tmp_path)[-1] == 8


def _interrupt(path, value):
    from storage.files import write_json

    if value.get("loss") == 3.0:
        raise KeyboardInterrupt
    write_json(path, value)


def test_a_damaged_state_is_named(tmp_path):
    fit(tmp_path, max_steps=6)
    path = tmp_path / "checkpoints/step-00000006/state.json"
    for wrong in ({"waited": "two"}, {"other": 1}, [1]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"best": wrong}))
        with pytest.raises(ConfigError, match=r"'best' in state.json of step 6 is damaged"):
            fit(tmp_path)


def test_what_decides():
    state = BestSoFar()
    values = {1: float("nan"), 2: 2.0, 3: 2.0, 4: float("nan"), 5: 1.0}
    seen = []
    for step, value in values.items():
        state = state.after(step, {"loss": value}, LOWER)
        assert state.after(step, {"loss": 0.0}, LOWER) is state  # an evaluation counts once
        seen.append((state.step, state.waited))
    assert seen == [(None, 0), (2, 0), (2, 1), (2, 2), (5, 0)]
    assert state.after(6, {"images": 0.0}, LOWER).waited == 1  # none could be read
    higher = DecidingValue(name="psnr", higher=True, since=10)
    state = BestSoFar()
    for step, value in ((5, 30.0), (10, 31.0), (15, 20.0), (20, 21.0), (25, 19.0)):
        state = state.after(step, {"psnr": value}, higher)
    assert (state.step, state.value, state.waited) == (20, 21.0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0, "evaluate_every": 1}, "training.patience=0 must be at least 1, or null"),
        (
            {"patience": 2, "evaluate_every": 0},
            "training.patience=2 needs evaluations; .*evaluate_every=0 must",
        ),
        ({"keep_best": True, "evaluate_every": 0}, "training.keep_best=True needs evaluations"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainingSettings(max_steps=10, **options)


def test_a_task_without_a_value_that_decides_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"training.patience=2: nothing that this task measures can decide"):
        fit(tmp_path / "run", make=Toy)
    assert not (tmp_path / "run").exists()
    assert weights(tmp_path) == {}
