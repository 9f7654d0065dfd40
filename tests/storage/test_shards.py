"""Shards: safetensors only, in place, and damage is noticed."""

import pickle

import pytest
import torch
from torch import nn

from storage.shards import read_shards, shard_shapes, write_shards
from storage.weights import CheckpointError, load_weights

STATE = {
    "weight": torch.arange(6.0).view(2, 3),
    "bias": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
}


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path / "model.shards", STATE)
    return tmp_path / "model.shards"


def test_what_is_written_is_read_in_place(folder):
    assert shard_shapes(folder) == {name: tensor.shape for name, tensor in STATE.items()}
    read = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    read_shards(folder, read)
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())


def test_nothing_is_unpickled(folder):
    class Harm:
        def __reduce__(self):
            return (pytest.fail, ("code of a checkpoint ran",))

    (folder / ".metadata").write_bytes(pickle.dumps(Harm()))
    (folder / "__0_0.distcp").write_bytes(pickle.dumps(Harm()))
    read_shards(folder, {"weight": torch.zeros(2, 3)})
    assert {p.suffix for p in folder.iterdir()} >= {".safetensors"}
    for path in folder.glob("*.safetensors"):
        path.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(CheckpointError, match=r"model\.shards is damaged"):
        load_weights(folder, nn.Linear(3, 2))


def test_entries_have_to_fit_the_module(folder):
    with pytest.raises(CheckpointError, match="'count', which the configured model lacks"):
        load_weights(folder, nn.Linear(3, 2))
    module = nn.Linear(3, 2)
    load_weights(folder, module, drop=("count",))
    assert torch.equal(module.weight, STATE["weight"]) and module.bias.tolist() == [1.0, 2.0]
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[2, 3\], .* needs \[2, 4\]"):
        load_weights(folder, nn.Linear(4, 2), drop=("count",))
    with pytest.raises(FileNotFoundError, match="nowhere.shards does not exist"):
        load_weights(folder.parent / "nowhere.shards", module)


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_shards(tmp_path / "file" / "model.shards", STATE)
