import errno
import importlib.machinery
import json
import sys
import types

import pytest
import torch

from common.build import ConfigError
from training import tracker
from training.settings import ExperimentSettings
from training.tracker import Meters, Tracker, read_metrics

CPU = torch.device("cpu")


def make(folder, *mirrors, step=0):
    experiment = ExperimentSettings(name="n", output_dir=str(folder), project="p", trackers=list(mirrors))
    return Tracker(folder, experiment, config={"a": 1}, step=step)


def test_means_start_anew_when_taken():
    meters = Meters()
    assert meters.take(CPU) == ({}, {})
    meters.add(1, {"loss": torch.tensor(1.0, requires_grad=True), "share": 0.5})
    meters.add(2, {"loss": torch.tensor(4, dtype=torch.bfloat16)})
    assert meters.take(CPU) == ({"loss": 2.5, "share": 0.5}, {})
    meters.add(3, {"loss": torch.tensor(7.0)})
    assert meters.take(CPU) == ({"loss": 7.0}, {})


def test_means_are_over_processes(monkeypatch):
    monkeypatch.setattr(tracker.distributed, "all_reduce_mean", lambda values: values + 1)
    meters = Meters()
    for step, value in enumerate((1.0, 2.0)):
        meters.add(step, {"loss": value})
    assert meters.take(CPU) == ({"loss": 2.5}, {})


def test_the_first_step_that_broke_down_is_known():
    meters = Meters()
    for step, loss in enumerate((1.0, float("inf"), 1.0, float("nan")), start=10):
        meters.add(step, {"loss": torch.tensor(loss), "other": 1.0})
    means, wrong = meters.take(CPU)
    assert wrong == {"loss": 11} and means["other"] == 1 and means["loss"] != means["loss"]


def test_records_are_on_disk_at_once(tmp_path):
    log = make(tmp_path)
    log.log(1, "train", {"loss": 2.0})
    log.log(2, "evaluate", {"psnr": 20.0})
    expected = [{"step": 1, "kind": "train", "loss": 2.0}, {"step": 2, "kind": "evaluate", "psnr": 20.0}]
    assert read_metrics(tmp_path / "metrics.jsonl") == expected
    log.picture(2, "samples", torch.zeros(3, 2, 2))
    log.close()


def test_a_resumed_run_continues_its_own_curve(tmp_path):
    log = make(tmp_path)
    for step in (10, 20, 30):
        log.log(step, "train", {"loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "ki')  # killed while writing
    resumed = make(tmp_path, step=20)
    resumed.log(30, "train", {"loss": 5.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        (10, 1.0),
        (20, 1.0),
        (30, 5.0),
    ]
    make(tmp_path)  # begun anew
    assert read_metrics(tmp_path / "metrics.jsonl") == [] == read_metrics(tmp_path / "nowhere")


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker.distributed, "on_main", lambda work: None)
    log = make(tmp_path, "tensorboard")
    log.log(1, "train", {"loss": 1.0})
    log.picture(1, "a", torch.zeros(3, 2, 2))
    log.close()
    assert not list(tmp_path.iterdir())


class FullFile:
    def write(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_names_the_file(tmp_path):
    log = make(tmp_path)
    log.close()
    log.file = FullFile()
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl") as error:
        log.log(1, "train", {"loss": 1.0})
    assert error.value.errno == errno.ENOSPC


def test_a_mirror_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="experiment.trackers: wandb is not installed; `pip install wandb`"):
        make(tmp_path, "wandb")
    assert not list(tmp_path.iterdir())


class Wandb(types.ModuleType):
    """Stands in for the package: what is sent is kept."""

    Image = staticmethod(lambda image: ("image", tuple(image.shape)))

    def __init__(self, key):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.api = types.SimpleNamespace(api_key=key)
        self.sent, self.options, self.finished = [], None, False

    def init(self, **options):
        self.options = options
        return self

    def log(self, values, step):
        self.sent.append((step, values))

    def finish(self):
        self.finished = True


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("secret", None)])
def test_wandb_mirrors_and_is_offline_without_a_key(tmp_path, monkeypatch, capsys, key, mode):
    wandb = Wandb(key)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    log = make(tmp_path, "wandb")
    log.log(3, "train", {"loss": 1.0})
    log.picture(3, "samples", torch.zeros(3, 2, 4))
    log.close()
    assert wandb.sent == [(3, {"train/loss": 1.0}), (3, {"samples": ("image", (3, 2, 4))})] and wandb.finished
    assert wandb.options["mode"] == mode and wandb.options["dir"] == str(tmp_path)
    assert ("recorded offline" in capsys.readouterr().out) == (mode == "offline")


def test_a_restarted_run_continues_its_run_of_wandb(tmp_path, monkeypatch):
    wandb = Wandb(None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    ids = []
    for folder, step in (("one", 0), ("one", 7), ("two", 0)):
        (tmp_path / folder).mkdir(exist_ok=True)
        make(tmp_path / folder, "wandb", step=step).close()
        assert wandb.options["resume"] == "allow"
        ids.append(wandb.options["id"])
    assert ids[0] == ids[1] != ids[2] and ids[0]


def test_tensorboard_mirrors(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append(("open", folder, purge_step))

        def __getattr__(self, name):
            return lambda *arguments: calls.append((name, *arguments))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: name)
    log = make(tmp_path, "tensorboard", step=4)
    log.log(5, "evaluate", {"psnr": 2.0})
    image = torch.zeros(3, 2, 2)
    log.picture(5, "a", image)
    log.close()
    assert calls[:2] == [("open", f"{tmp_path}/tensorboard", 4), ("add_scalar", "evaluate/psnr", 2.0, 5)]
    assert calls[2][:2] == ("add_image", "a") and calls[3] == ("close",)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["psnr"] == 2.0
