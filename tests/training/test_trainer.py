"""The engine on a toy task: files of a run, resume, phases, accumulation, signals, what stops a run."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from common.build import ConfigError
from common.config import read_yaml
from data.source import CorruptSample, Source
from modeling.layers.trainable import Trainable
from training.accelerator import start
from training.settings import ExperimentSettings, OptimizerSettings, ScheduleSettings, TrainingSettings
from training.task import Phase, Picture, Task
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("engine")


class Numbers(Source):
    """40 examples of four tokens; some cannot be read."""

    item_key, item_shape = "tokens", (4,)

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.class_names, self.labels = ["a", "b"], np.arange(40) % 2
        self.bad = bad

    def load(self, index, rng):
        if index in self.bad:
            raise CorruptSample(f"example {index}", "cannot be read")
        return torch.arange(4) + index, int(self.labels[index])


class Layers(nn.Sequential, Trainable):
    """Layers one after the other."""


class Layer(nn.Linear, Trainable):
    """A single layer."""


class Toy(Task):
    """A regression with dropout and noise, and a second module that starts at step 2, with running statistics."""

    def __init__(self, dropout: float = 0.2, break_at: int | None = None) -> None:
        self.modules = {
            "model": Layers(nn.Linear(4, 8), nn.Dropout(dropout), nn.Linear(8, 1)),
            "critic": Layer(1, 1),
        }
        self.optimizers = {
            "model": OptimizerSettings(learning_rate=0.01),
            "critic": OptimizerSettings(learning_rate=0.02),
        }
        mean = nn.Module()
        mean.register_buffer("value", torch.zeros(1))
        self.state = {"mean": mean}
        self.break_at, self.seen = break_at, []

    def phases(self):
        return [Phase(module="model", loss=self.loss), Phase(module="critic", loss=self.critic, start=2)]

    def loss(self, batch, context):
        self.seen += batch["positions"].tolist()
        inputs = batch["tokens"].float() / 40 + 0.1 * context.random.normal("noise", 4)
        predicted = context.modules["model"](inputs)
        context.shared["predicted"] = predicted.detach()
        loss = (predicted[:, 0] - batch["labels"]).square().mean()
        if context.step == self.break_at:
            loss = loss * float("nan")
        return loss, {"total_loss": loss, "part_loss": 1.0}

    def critic(self, batch, context):
        loss = context.modules["critic"](context.shared["predicted"]).square().mean()
        self.state["mean"].value.lerp_(context.shared["predicted"].mean(), 0.1)
        return loss, {"critic_loss": loss}

    def evaluate(self, model, device):
        assert not model.training
        return {"output": float(model(torch.ones(1, 4)))}

    def preview(self, model, device):
        assert not model.training and not torch.is_grad_enabled()
        return [Picture(name="shown", image=torch.rand(3, 4, 4))]


def train(folder, *, make=Toy, source=None, seed=1, model="toy", schedule=None, **options) -> Toy:
    options = {
        "max_steps": 8,
        "per_gpu_batch_size": 4,
        "ema_decay": 0.9,
        "num_workers": 0,
        "log_every": 3,
        "evaluate_every": 0,
        "preview_every": 4,
        "save_every": 3,
        **options,
    }
    training = TrainingSettings(**options)
    experiment = ExperimentSettings(name="toy", output_dir=str(folder), seed=seed)
    accelerator = start(training, experiment)
    task = make()  # after the start, which seeds initialisation
    trainer = Trainer(
        task=task,
        source=source or Numbers(),
        accelerator=accelerator,
        experiment=experiment,
        training=training,
        schedule=schedule or ScheduleSettings(warmup_steps=2, end_lr=0.001),
        config={"tokenizer": {"name": model}},
    )
    trainer.fit()
    return task


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder) -> dict[str, dict[str, torch.Tensor]]:
    return {str(p.relative_to(folder)): load_file(p) for p in folder.rglob("*.safetensors")}


def assert_same(one, two, **tolerance) -> None:
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys() and "model.safetensors" in one
    for file, state in one.items():
        for name, tensor in state.items():
            torch.testing.assert_close(two[file][name], tensor, **(tolerance or {"rtol": 0, "atol": 0}))


def steps(folder) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Drawing curves takes longer than the training itself; one test does it."""
    monkeypatch.setattr("training.trainer.draw_curves", lambda folders, output: output.write_bytes(b"") > 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def test_a_run_folder_holds_what_it_should(whole):
    assert steps(whole) == [6, 8]
    names = {p.name for p in (whole / "checkpoints/step-00000008").iterdir()}
    modules = {f"{n}.safetensors" for n in ("model", "critic", "mean", "ema")}
    assert names == modules | {"optimizers.pt", "state.json", "config.yaml"}
    result, averaged = (
        weights(whole)["model.safetensors"],
        weights(whole)["checkpoints/step-00000008/ema.safetensors"],
    )
    raw = weights(whole)["checkpoints/step-00000008/model.safetensors"]
    assert all(torch.equal(result[n], averaged[n]) and not torch.equal(result[n], raw[n]) for n in result)
    assert read_yaml(whole / "config.yaml") == {"tokenizer": {"name": "toy"}}
    kinds = [(r["step"], r["kind"]) for r in records(whole)]
    assert kinds == [(1, "train"), (3, "train"), (6, "train"), (8, "train"), (8, "evaluate")]
    assert json.loads((whole / "metrics.json").read_text()).keys() == {"output"}
    pictures = {str(p.relative_to(whole)) for p in whole.rglob("*.png")}
    assert pictures == {
        "shown.png",
        "previews/shown-00000004.png",
        "previews/shown-00000008.png",
        "curves.png",
    }
    assert not list(whole.rglob("*.part"))


def test_records_say_how_training_goes(whole):
    first, second, *_ = records(whole)
    assert {
        "total_loss",
        "part_loss",
        "gradient_norm/model",
        "seconds_per_step",
        "images_per_second",
    } <= first.keys()
    assert first["learning_rate/model"] == 0 and first["part_loss"] == 1.0
    assert second["learning_rate/model"] == pytest.approx(0.01)
    assert "critic_loss" not in first and "critic_loss" in second


def test_late_phases_wait_and_have_their_own_warm_up(tmp_path):
    train(tmp_path, save_every=1, keep_checkpoints=9, log_every=1)
    values = [
        load_file(tmp_path / f"checkpoints/step-{s:08d}/critic.safetensors")["weight"].item()
        for s in range(1, 9)
    ]
    # The first own step has learning rate 0, the beginning of the warm-up.
    assert values[0] == values[1] == values[2] and len(set(values[2:])) == 6
    rates = [r["learning_rate/critic"] for r in records(tmp_path) if r["kind"] == "train"]
    assert rates[:5] == pytest.approx([0, 0, 0, 0.01, 0.02]) and rates[-1] < 0.01


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_stopped_by_a_signal_and_run_again_it_ends_the_same(tmp_path, whole, capsys, stop_at):
    class Stopped(Toy):
        def loss(self, batch, context):
            if context.step == stop_at - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(batch, context)

    first = []
    with pytest.raises(SystemExit) as end:
        train(tmp_path, make=lambda: first.append(Stopped()) or first[0])
    assert end.value.code == 128 + signal.SIGTERM and steps(tmp_path)[-1] == stop_at
    assert f"stopped by signal 15 after step {stop_at}; run the same command again" in capsys.readouterr().out
    second = train(tmp_path)
    assert first[0].seen + second.seen == list(range(32))
    for step in set(steps(tmp_path)) - set(steps(whole)):
        pytest.fail(f"step {step} should have been removed")
    assert_same(whole, tmp_path)
    assert [(r["step"], r["kind"]) for r in records(tmp_path)] == [
        (r["step"], r["kind"]) for r in records(whole)
    ]


def test_the_seed_decides(tmp_path, whole):
    train(tmp_path / "again")
    assert_same(whole, tmp_path / "again")
    train(tmp_path / "other", seed=2)
    assert not torch.equal(
        *(weights(f)["model.safetensors"]["0.weight"] for f in (whole, tmp_path / "other"))
    )


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    def run(name, batch, accumulation):
        return train(
            tmp_path / name,
            make=lambda: Toy(dropout=0.0),
            schedule=ScheduleSettings(name="constant"),
            per_gpu_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )

    assert sorted(run("one", 8, 1).seen) == sorted(run("two", 2, 4).seen)
    one, two = (weights(tmp_path / n) for n in ("one", "two"))
    for file in ("model.safetensors", "checkpoints/step-00000008/critic.safetensors"):
        for name in one[file]:
            torch.testing.assert_close(two[file][name], one[file][name], rtol=1e-4, atol=1e-5)
    for first, second in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        if first["kind"] == "train":
            for name in ("total_loss", "gradient_norm/model"):
                assert second[name] == pytest.approx(first[name], rel=1e-3)


def test_gradients_are_clipped_before_the_update(tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def note(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    train(tmp_path, max_grad_norm=1e-3)
    assert max(seen) < 1.01e-3


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    train(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = train(tmp_path)
    assert not again.seen and "is finished (8 steps); nothing to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert len(train(tmp_path, max_steps=9).seen) == 4  # unless it is to go on


def test_a_run_killed_before_its_result_was_written_makes_it(tmp_path, whole):
    train(tmp_path)
    for name in ("model.safetensors", "metrics.json", "curves.png"):
        (tmp_path / name).unlink()
    assert not train(tmp_path).seen
    assert_same(whole, tmp_path)
    assert (tmp_path / "metrics.json").read_text() == (whole / "metrics.json").read_text()
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_of_another_run_is_refused_untouched(tmp_path, finished):
    train(tmp_path, max_steps=8 if finished else 6)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(
        ConfigError, match="trained with another model: tokenizer.name was toy, is now new; choose"
    ):
        train(tmp_path, model="new")
    with pytest.raises(ConfigError, match=r"experiment\.seed=2, but .* was begun with 1"):
        train(tmp_path, seed=2)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_result_without_checkpoints_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"model\.safetensors has no checkpoint beside it"):
        train(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_another_batch_size_is_allowed_and_said(tmp_path, capsys):
    train(tmp_path, max_steps=3)
    resumed = train(tmp_path, per_gpu_batch_size=8)
    assert resumed.seen[:2] == [24, 25]
    assert "the global batch was 4 and is now 8; data order changes" in capsys.readouterr().err


def test_a_loss_that_breaks_down_stops_the_run_and_spares_its_checkpoints(tmp_path, capsys):
    with pytest.raises(
        ConfigError, match=r"^step 5: gradient_norm/model, total_loss is not finite .*; checkpoints"
    ):
        train(tmp_path, make=lambda: Toy(break_at=4), log_every=6, keep_checkpoints=1)


def test_broken_weights_are_not_saved_between_two_logs(tmp_path):
    with pytest.raises(ValueError, match=r"^step 5: .* is not finite"):
        train(
            tmp_path,
            make=lambda: Toy(break_at=4),
            save_every=1,
            log_every=6,
            keep_checkpoints=1,
            max_steps=20,
        )
    assert steps(tmp_path) == [4]
    assert all(t.isfinite().all() for state in weights(tmp_path).values() for t in state.values())
    train(tmp_path)  # goes on from there


def test_unreadable_examples_are_replaced_and_named(tmp_path, capsys):
    task = train(tmp_path, source=Numbers(bad=(3, 7)), max_skipped=0.1)
    assert len(task.seen) == 32
    err = capsys.readouterr().err
    assert err.count("warning: skipped example 3: cannot be read") == 1 and "example 7" in err


def test_too_many_unreadable_examples_stop_the_run(tmp_path):
    with pytest.raises(
        ConfigError, match=r"of \d+ samples could not be read, more than training.max_skipped=0"
    ):
        train(tmp_path, source=Numbers(bad=tuple(range(0, 40, 2))))
    with pytest.raises(ValueError, match="40 examples in a row cannot be read; the last is example"):
        train(tmp_path, source=Numbers(bad=tuple(range(40))))


def test_without_averaging_the_raw_weights_are_the_result(tmp_path):
    train(tmp_path, ema_decay=None)
    found = weights(tmp_path)
    assert "checkpoints/step-00000008/ema.safetensors" not in found
    for name, tensor in found["checkpoints/step-00000008/model.safetensors"].items():
        assert torch.equal(found["model.safetensors"][name], tensor)


def test_a_full_disk_ends_the_run_with_its_last_checkpoint(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        saved = torch.save
        patch.setattr("training.checkpoint.torch.save", lambda *a: full() if steps(tmp_path) else saved(*a))
        with pytest.raises(
            ValueError, match=r"step-00000006: .*No space left.*the last complete one is .*0003"
        ):
            train(tmp_path)
    assert steps(tmp_path) == [3]
    train(tmp_path)


def test_processes_that_do_not_find_each_other_do_not_train_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        "training.accelerator.Accelerator", lambda **_: type("Alone", (), {"num_processes": 1})
    )
    with pytest.raises(ConfigError, match="WORLD_SIZE is above 1"):
        train(tmp_path)


class Decaying(Toy):
    """A model whose weight decay grows."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizers["model"] = OptimizerSettings(
            learning_rate=0.01, weight_decay=0.5, weight_decay_end=0.9
        )


def test_weight_decay_and_drops_follow_their_schedule_and_resume(tmp_path, monkeypatch):
    seen = []
    update = torch.optim.AdamW.step

    def watch(optimizer, *arguments, **options):
        seen.append([(g["lr"], g["weight_decay"]) for g in optimizer.param_groups])
        return update(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    options = {
        "make": Decaying,
        "schedule": ScheduleSettings(name="steps", drop_steps=[2, 5]),
        "preview_every": 0,
    }
    train(tmp_path / "whole", **options)
    model = [groups for groups in seen if groups[1][1] != 1e-4]  # the critic keeps the default
    assert [groups[0][1] for groups in model] == [0.0] * 8
    decays = [0.9 - 0.4 * 0.5 * (1 + np.cos(np.pi * t / 7)) for t in range(8)]
    assert [groups[1][1] for groups in model] == pytest.approx(decays)
    assert [groups[1][0] for groups in model] == pytest.approx([1e-2] * 2 + [1e-3] * 3 + [1e-4] * 3)
    train(tmp_path / "parts", **options)
    (tmp_path / "parts" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000008")
    train(tmp_path / "parts", **options)
    assert_same(tmp_path / "whole", tmp_path / "parts")
