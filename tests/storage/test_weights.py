import json

import pytest
import torch
from safetensors.torch import save_file

from storage import weights
from storage.files import WriteError
from storage.weights import (
    CheckpointError,
    load_weights,
    read_weights,
    weight_hash,
    weight_names,
    write_weights,
)


def test_cut_pickle_is_damaged_and_code_in_it_does_not_run(tmp_path):
    path = tmp_path / "weights.bin"
    torch.save({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, path)
    linear = torch.nn.Linear(2, 3)
    load_weights(path, linear)
    assert linear.weight.sum() == 6
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(path)
    torch.save({"weight": print}, path)
    with pytest.raises(CheckpointError, match="damaged or of another format"):
        read_weights(path)


def test_weights_of_another_model_name_entry_and_shapes(tmp_path):
    save_file({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"w\.safetensors: entry 'weight' has shape \[3, 2\], .* \[3, 4\]"
    ):
        load_weights(tmp_path / "w.safetensors", torch.nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match="holds the entry 'bias'"):
        load_weights(tmp_path / "w.safetensors", torch.nn.Linear(2, 3, bias=False))
    larger = torch.nn.Linear(2, 3)
    larger.register_buffer("usage", torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"lacks the entry 'usage' \[3\]"):
        load_weights(tmp_path / "w.safetensors", larger)


def test_missing_and_cut_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors does not exist"):
        read_weights(tmp_path / "nowhere.safetensors")
    save_file({"weight": torch.ones(30, 20)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "w.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"w\.safetensors is damaged"):
            read_weights(tmp_path / "w.safetensors")


def test_what_is_no_state_dict_is_refused(tmp_path):
    for content in ([torch.ones(2)], {"step": 3}, torch.ones(2)):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match="not a state dict of tensors"):
            read_weights(tmp_path / "w.pt")


STATE = {"encoder.weight": torch.arange(6.0).view(3, 2), "decoder.bias": torch.zeros(3)}


@pytest.mark.parametrize(
    "content",
    [
        {f"module.{n}": t for n, t in STATE.items()},
        {f"_orig_mod.{n}": t for n, t in STATE.items()},
        {f"module._orig_mod.{n}": t for n, t in STATE.items()},
        {n.replace(".", "._orig_mod."): t for n, t in STATE.items()},
        {"model": {n: t + 1 for n, t in STATE.items()}, "ema": STATE, "epoch": 3, "args": {"lr": 1e-4}},
        {"state_dict": {f"module.{n}": t for n, t in STATE.items()}, "epoch": 3},
    ],
    ids=["ddp", "compiled", "both", "parts", "training", "lightning"],
)
def test_what_other_programs_put_around_weights_is_taken_off(tmp_path, content):
    torch.save(content, tmp_path / "w.bin")
    found = read_weights(tmp_path / "w.bin")
    assert found.keys() == STATE.keys() == weight_names(tmp_path / "w.bin")
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    if all(map(torch.is_tensor, content.values())):
        save_file(content, tmp_path / "w.safetensors")
        assert read_weights(tmp_path / "w.safetensors").keys() == STATE.keys()
        assert weight_names(tmp_path / "w.safetensors") == STATE.keys()


def test_names_below_model_are_the_modules_own_or_a_holders(tmp_path):
    linear = torch.nn.Linear(2, 3)
    held = {f"model.{n}": torch.ones_like(t) for n, t in linear.state_dict().items()}
    save_file(held, tmp_path / "w.safetensors")
    load_weights(tmp_path / "w.safetensors", linear)
    assert linear.weight.sum() == 6
    own = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 3)})
    load_weights(tmp_path / "w.safetensors", own)
    assert own["model"].weight.sum() == 6


def test_shards_are_read_by_their_index(tmp_path):
    files = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate(STATE)}
    for name, file in files.items():
        save_file({name: STATE[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert read_weights(index).keys() == STATE.keys() == weight_names(index)
    (tmp_path / files["decoder.bias"]).unlink()
    with pytest.raises(
        CheckpointError, match=r"names the shard model-00001-of-00002.safetensors, which is not"
    ):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "\n"}}))
    with pytest.raises(CheckpointError, match=r"names the shard \\n, which is not"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/x.safetensors"}}))
    with pytest.raises(
        CheckpointError, match="names the shard '../../etc/x.safetensors', expected the name of a file"
    ):
        read_weights(index)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_weights(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page, not the weights"),
        (b"", "damaged: it is empty"),
    ],
)
def test_files_that_only_have_the_name_of_weights(tmp_path, content, message):
    for name in ("w.safetensors", "w.bin"):
        (tmp_path / name).write_bytes(content)
        for read in (read_weights, weight_names):
            with pytest.raises(CheckpointError, match=message):
                read(tmp_path / name)


def test_hash_tells_names_types_shapes_and_values_apart():
    def module(name: str, tensor: torch.Tensor) -> torch.nn.Module:
        made = torch.nn.Module()
        made.register_buffer(name, tensor)
        return made

    zeros = torch.zeros(2, 3)
    others = [("b", zeros), ("a", zeros.double()), ("a", zeros.t()), ("a", zeros + 1e-45)]
    hashes = {weight_hash(module(name, tensor)) for name, tensor in [("a", zeros), *others]}
    assert len(hashes) == 5 and all(len(h) == 16 for h in hashes)
    assert weight_hash(module("a", zeros.clone())) in hashes
    column_major = torch.arange(6.0).view(3, 2).t()
    assert weight_hash(module("a", column_major)) == weight_hash(module("a", column_major.contiguous()))


def test_only_entries_that_the_model_lacks_are_dropped_by_pattern(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(
        {"weight": torch.ones(3, 2), "bias": torch.ones(3), "a.ids": torch.zeros(1), "b.ids": torch.zeros(1)},
        path,
    )
    linear = torch.nn.Linear(2, 3)
    load_weights(path, linear, drop=("*.ids", "bias"))
    assert linear.bias.sum() == 3  # a pattern does not take away what the model has
    with pytest.raises(CheckpointError, match=r"holds the entry 'b\.ids'"):
        load_weights(path, linear, drop=("a.*",))


def test_names_are_read_without_values_and_written_files_are_whole(tmp_path):
    linear = torch.nn.Linear(2, 3)
    write_weights(tmp_path / "w.safetensors", linear.state_dict())
    torch.save(linear.state_dict(), tmp_path / "w.bin")
    torch.save(linear.state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.bin", "old.bin"):
        assert weight_names(tmp_path / name) == {"weight", "bias"}
        other = torch.nn.Linear(2, 3)
        load_weights(tmp_path / name, other)
        assert torch.equal(other.weight, linear.weight)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
        with pytest.raises(CheckpointError, match="damaged"):
            weight_names(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        weight_names(tmp_path / "nowhere.safetensors")


def test_weights_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    shared = torch.arange(6.0).view(2, 3)
    write_weights(path, {"a": shared.t(), "b": shared}, {"format": "pt"})  # not contiguous, shared memory
    assert torch.equal(read_weights(path)["a"], shared.t())

    def half(state, temporary, metadata):
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", half)
    with pytest.raises(WriteError, match=r"model\.safetensors cannot be written: No space left"):
        write_weights(path, {"a": torch.zeros(1)})
    assert len(read_weights(path)) == 2 and [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
