"""Training files of others: weights come out, nothing is run."""

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling.pretrained.nested_files import read_nested_weights
from storage.weights import CheckpointError

STATE = {"quant_conv.weight": torch.arange(6.0).view(2, 3), "loss.x": torch.ones(1)}


class _Payload:
    """Calls a function with the name of a file when it is unpickled."""

    def __init__(self, function: Callable, marker: Path) -> None:
        self.function, self.marker = function, marker

    def __reduce__(self) -> tuple:
        return self.function, (str(self.marker),)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module `lightning_of_old` with a class, which the reader must not import."""
    module = types.ModuleType("lightning_of_old")
    for name, bases in (("ModelCheckpoint", (object,)), ("AttributeDict", (dict,))):
        kind = type(name, bases, {"__module__": module.__name__})
        setattr(module, name, kind)

    def touch(name: str) -> None:
        Path(name).touch()

    touch.__module__ = module.__name__
    touch.__qualname__ = "touch"
    module.touch = touch
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_weights_of_a_training_file_without_its_libraries(tmp_path, foreign, monkeypatch) -> None:
    callback = foreign.ModelCheckpoint()
    callback.best = 3
    content = {
        "epoch": 7,
        "callbacks": {foreign.ModelCheckpoint: callback},
        "hyper_parameters": foreign.AttributeDict(lr=1.0),
        "state_dict": STATE,
    }
    path, marker = tmp_path / "last.ckpt", tmp_path / "ran"
    torch.save({**content, "payload": _Payload(foreign.touch, marker)}, path)
    monkeypatch.delitem(sys.modules, foreign.__name__)
    found = read_nested_weights(path)
    assert list(found) == list(STATE) and all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert not marker.exists() and "lightning_of_old" not in sys.modules


def test_the_first_key_counts_and_plain_files_are_read(tmp_path) -> None:
    torch.save({"ema": {"a": torch.zeros(1)}, "model": STATE, "steps": 3}, tmp_path / "both.pt")
    assert set(read_nested_weights(tmp_path / "both.pt")) == set(STATE)
    assert set(read_nested_weights(tmp_path / "both.pt", keys=("ema", "model"))) == {"a"}
    torch.save(STATE, tmp_path / "plain.pt")
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "new.safetensors")
    for name in ("plain.pt", "old.pt", "new.safetensors"):
        assert set(read_nested_weights(tmp_path / name)) == set(STATE)


def test_what_is_refused(tmp_path) -> None:
    torch.save({"epoch": 3, "optimizer": {"step": 1}}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="holds no state dict of tensors"):
        read_nested_weights(tmp_path / "none.pt")
    for function in (os.mkdir, eval):
        torch.save({"model": STATE, "code": _Payload(function, tmp_path / "ran")}, tmp_path / "code.pt")
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_nested_weights(tmp_path / "code.pt")
    assert not (tmp_path / "ran").exists()
    whole = (tmp_path / "none.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        read_nested_weights(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError):
        read_nested_weights(tmp_path / "missing.pt")
