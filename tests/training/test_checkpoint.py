"""Checkpoint folders: complete or not there, pruned, and never lost to a full disk."""

import errno
import os
import shutil
import subprocess
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from common import distributed
from common.config import read_yaml
from storage.weights import CheckpointError, read_weights
from tests.evaluator.processes import in_two_processes, needs_fork
from training import checkpoint
from training.checkpoint import CheckpointFolder

INFO = {"seed": 1, "config": {"tokenizer": {"name": "titok"}}}


def states(size: int = 3, value: float = 1.0) -> dict:
    return {"model": {"weight": torch.full((size,), value)}, "ema": {"weight": torch.zeros(size)}}


def optimizers(size: int = 3) -> dict:
    return {"optimizers": {"model": {"state": {"weight": {"step": 2, "exp_avg": torch.ones(size)}}}}}


def folders(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "checkpoints").iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    assert checkpoints.steps() == []
    target = checkpoints.save(7, states(), optimizers(), INFO)
    assert target == checkpoints.path(7) == tmp_path / "checkpoints/step-00000007"
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.empty(3)))
    checkpoints.load_module(7, "model", module)
    assert module.weight.tolist() == [1, 1, 1]
    moments = checkpoints.load_optimizers(7)["optimizers"]["model"]["state"]["weight"]
    assert moments["step"] == 2 and moments["exp_avg"].tolist() == [1, 1, 1]
    assert checkpoints.load_info(7) == {"step": 7, "seed": 1}
    assert read_yaml(target / "config.yaml") == INFO["config"]


def test_newest_and_milestones_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=2, milestone_every=20)
    for step in range(5, 50, 5):
        checkpoints.save(step, states(), optimizers(), INFO)
    assert checkpoints.steps() == [20, 35, 40, 45]  # 40 is a milestone, so two ordinary ones stay beside it


def test_only_complete_checkpoints_count(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    for name in (".step-00000009.part", "step-junk", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000010").write_text("a file")
    assert checkpoints.steps() == []
    checkpoints.save(9, states(), optimizers(), INFO)  # over what a killed run left behind
    assert checkpoints.steps() == [9] and ".step-00000009.part" not in folders(tmp_path)


def test_a_killed_save_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    checkpoints.save(1, states(), optimizers(), INFO)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, states(), optimizers(), INFO)
    assert checkpoints.steps() == [1]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("storage.weights.save_file", FULL),
        (
            "training.checkpoint.torch.save",
            RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0"),
        ),
        ("training.checkpoint.write_yaml", FULL),
        ("storage.files.os.replace", FULL),
    ],
)
def test_full_disk_keeps_earlier_checkpoints_and_names_the_last(tmp_path, monkeypatch, place, error):
    checkpoints = CheckpointFolder(tmp_path, keep=1)

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(CheckpointError, match="cannot save .*step-00000010: .*; there is no earlier one"):
            checkpoints.save(10, states(), optimizers(), INFO)
    checkpoints.save(10, states(), optimizers(), INFO)
    monkeypatch.setattr(place, full)
    with pytest.raises(CheckpointError, match=r"step-00000020: .*; the last complete one is .*step-00000010"):
        checkpoints.save(20, states(), optimizers(), INFO)
    assert folders(tmp_path) == ["step-00000010"]
    assert read_weights(checkpoints.path(10) / "model.safetensors")["weight"].tolist() == [1, 1, 1]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("stem", ["model", "optimizers"])
def test_really_full_disk(small_disk, stem):
    checkpoints = CheckpointFolder(small_disk, keep=1)
    checkpoints.save(10, states(50_000), optimizers(3), INFO)  # two files of 200 kB
    large = 200_000  # 800 kB more do not fit
    arguments = (states(3), optimizers(large)) if stem == "optimizers" else (states(large), optimizers())
    with pytest.raises(CheckpointError) as error:
        checkpoints.save(20, *arguments, INFO)
    assert "step-00000020" in str(error.value) and "the last complete one is" in str(error.value)
    assert ("disk full" if stem == "optimizers" else "No space left on device") in str(error.value)
    assert folders(small_disk) == ["step-00000010"]
    assert len(read_weights(checkpoints.path(10) / "ema.safetensors")["weight"]) == 50_000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_broke_down_do_not_replace_good_ones(tmp_path, value):
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    checkpoints.save(1, states(), optimizers(), INFO)
    broken = states()
    broken["ema"]["weight"][1] = value
    with pytest.raises(
        CheckpointError, match=r"step 2: 'weight' of ema is not finite; .* last complete one is .*0001"
    ):
        checkpoints.save(2, broken, optimizers(), INFO)
    assert folders(tmp_path) == ["step-00000001"]
    whole_numbers = {"model": {"codes": torch.arange(3)}}
    checkpoints.save(2, whole_numbers, optimizers(), INFO)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizers.pt", "state.json"])
@pytest.mark.parametrize("part", [None, 0, 0.5])
def test_damaged_files_are_named_with_the_way_out(tmp_path, name, part):
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    for step in (10, 20):
        checkpoints.save(step, states(), optimizers(), INFO)
    file = checkpoints.path(20) / name
    content = file.read_bytes()
    file.unlink() if part is None else file.write_bytes(content[: int(part * len(content))])
    load = {
        "model.safetensors": lambda: checkpoints.load_module(20, "model", nn.Linear(1, 1)),
        "optimizers.pt": lambda: checkpoints.load_optimizers(20),
        "state.json": lambda: checkpoints.load_info(20),
    }
    with pytest.raises(
        CheckpointError, match=rf"{name}.*; remove .*step-00000020 to begin from step-00000010"
    ):
        load[name]()


def test_optimizers_are_read_without_running_code(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    checkpoints.save(1, states(), {"optimizers": print}, INFO)
    with pytest.raises(CheckpointError, match=r"optimizers\.pt cannot be used"):
        checkpoints.load_optimizers(1)


def test_another_module_names_entry_and_shapes(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    checkpoints.save(1, states(), optimizers(), INFO)
    with pytest.raises(
        CheckpointError, match=r"'weight' has shape \[3\], .* \[2, 5\].* begin anew, or choose"
    ):
        checkpoints.load_module(1, "model", nn.Linear(5, 2, bias=False))


def test_folders_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file stands in the way")
    with pytest.raises(CheckpointError, match="cannot save checkpoint"):
        CheckpointFolder(tmp_path, keep=1).save(1, states(), optimizers(), INFO)


def _save_shards(rank: int, root: Path) -> None:
    """Two processes with a tensor of two rows each, of which one breaks down in the second checkpoint."""
    checkpoints = CheckpointFolder(root, keep=1)
    rows = distribute_tensor(torch.arange(8.0).view(4, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    shards = {"model": {"weight": rows, "count": torch.tensor(3)}}
    checkpoints.save(1, {"critic": {"weight": torch.ones(3)}}, optimizers(), INFO, shards)
    read = {"weight": distribute_tensor(torch.zeros(4, 2), rows.device_mesh, [Shard(0)])}
    checkpoints.load_shards(1, "model", read)
    assert torch.equal(read["weight"].to_local(), rows.to_local())
    for values, message in [
        ({"weight": rows * (float("nan") if rank else 1)}, "'weight' of model is not finite"),
        ({"weight": rows, "huge": torch.empty(2**50, device="meta")}, "no room for a checkpoint"),
    ]:
        full = pytest.MonkeyPatch.context() if "huge" in values else nullcontext()
        with (
            full as patch,
            pytest.raises(CheckpointError, match=f"step 2: .*{message}.* last complete .*00001"),
        ):
            if patch:
                patch.setattr(checkpoint, "_not_finite", lambda *_: None)  # a tensor without values
            checkpoints.save(2, {}, optimizers(), INFO, {"model": values})  # raised on both processes
    distributed.barrier()
    assert folders(root) == ["step-00000001"]
    (root / "checkpoints/step-00000001/model.shards").rename(root / "elsewhere") if rank == 0 else None
    distributed.barrier()
    with pytest.raises(CheckpointError, match=r"model\.shards cannot be used"):
        checkpoints.load_shards(1, "model", read)


@needs_fork
def test_shards_are_saved_by_all_processes_or_by_none(tmp_path):
    in_two_processes(partial(_save_shards, root=tmp_path), tmp_path)
    assert {p.name for p in (tmp_path / "checkpoints/step-00000001").iterdir()} == {
        *("critic.safetensors", "optimizers.pt", "state.json", "config.yaml")
    }
