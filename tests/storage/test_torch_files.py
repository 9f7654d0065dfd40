"""Files of torch that would run code, make room, or hide their size are refused by name."""

import pickle
import zipfile

import pytest
import torch

from modeling.pretrained.nested_files import read_nested_weights
from storage.torch_files import load_torch
from storage.weights import CheckpointError, read_weights
from training.checkpoint import CheckpointFolder


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
def test_room_is_not_made_for_a_number_in_a_pickle(tmp_path, new_format):
    path = tmp_path / "x.ckpt"
    room = {"a": torch.ones(2), "room": Call(bytearray, 1 << 60)}
    torch.save({"state_dict": room}, path, _use_new_zipfile_serialization=new_format)
    for read in (read_weights, read_nested_weights):
        with pytest.raises(CheckpointError, match=r"x\.ckpt .*it calls (builtins|__builtin__)\.bytearray"):
            read(path)


def test_compressed_members_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as source:
        content = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in content.items():
            archive.writestr(name, member)
    for read in (read_weights, read_nested_weights):
        with pytest.raises(CheckpointError, match="x.bin .*its members are compressed"):
            read(path)


def test_a_state_dict_has_names(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({1: torch.ones(2)}, path)
    for read in (read_weights, read_nested_weights):
        with pytest.raises(CheckpointError, match=r"x\.pt .*state dict"):
            read(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_make_a_file_does_not(tmp_path, new_format):
    marker, folder = tmp_path / "marker", tmp_path / "checkpoints" / "step-00000020"
    folder.mkdir(parents=True)
    path = folder / "optimizers.pt"
    torch.save(
        {"a": torch.ones(2), "x": Call(exec, f"open({str(marker)!r}, 'w')")},
        path,
        _use_new_zipfile_serialization=new_format,
    )
    for read in (
        read_weights,
        read_nested_weights,
        lambda _: CheckpointFolder(tmp_path, keep=1).load_optimizers(20),
    ):
        with pytest.raises(CheckpointError, match=r"optimizers\.pt"):
            read(path)
    with pytest.raises(pickle.UnpicklingError):
        load_torch(path, stand_ins=True)
    assert not marker.exists()
