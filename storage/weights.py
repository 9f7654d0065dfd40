"""Weight files: read without running code from them, loaded strictly, identified by a hash of their content."""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from common.console import printable
from storage.arrays import DAMAGE
from storage.files import atomic_file
from storage.json_files import read_json
from storage.torch_files import load_torch
from storage.wrappers import find_state, impostor, plain_names, unwrap, without_holder

INDEX = ".index.json"  # ending of the list of a file in shards
SHARDS = ".shards"  # ending of a folder that several processes wrote (storage/shards.py)

# What readers raise for files that are cut short, of another format, or hold more than tensors.
_UNREADABLE = (*DAMAGE, SafetensorError, AssertionError, pickle.UnpicklingError)


class CheckpointError(ValueError):
    """Weights cannot be read or do not fit the model; the message names the file."""


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors on the CPU of a weight file, under plain names (see `storage.wrappers`).

    `path` is a `.safetensors` file, a state dict or a training file that torch saved (`.bin`, `.pt`, `.pth`), or the
    index of a file in shards (`.index.json`).

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, or holds anything but named tensors; code in it is never run.
    """
    path = _existing(path)
    try:
        if path.name.endswith(INDEX):
            return unwrap({n: t for shard in _shards(path) for n, t in _read(shard).items()})
        return unwrap(_read(path))
    except _UNREADABLE as error:
        raise CheckpointError(_unreadable(path, error)) from error


def weight_names(path: str | Path) -> set[str]:
    """Names of the entries of a weight file, without reading their values; raises as `read_weights`."""
    path = _existing(path)
    if path.suffix != ".safetensors":
        return set(read_weights(path))
    try:
        with safe_open(path, framework="pt") as file:
            return set(plain_names(list(file.keys())).values())
    except _UNREADABLE as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    if what := impostor(path):
        raise CheckpointError(f"weight file {path} is {what}")
    return path


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state = find_state(load_torch(path))
    if state is None:
        raise CheckpointError(f"weight file {path} is not a state dict of tensors")
    return state


def shard_names(index: Path) -> list[str]:
    """Names of the files that an index lists; ValueError if it is damaged, or one would lie elsewhere."""
    named = list(read_json(index, weight_map=dict)["weight_map"].values())
    for name in named:  # it may come from anyone, and must not lead out of its folder
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, expected the name of a file beside it")
    return sorted(set(named))


def _shards(index: Path) -> list[Path]:
    """The files that an index names; they lie beside it."""
    shards = [index.parent / name for name in shard_names(index)]
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{index} names the shard {printable(shard.name)}, which is not beside it")
    return shards


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, CheckpointError):  # names the file already
        return str(error)
    reason = str(error).split("\n")[0].split(". ")[0]  # torch adds advice that does not apply
    if isinstance(error, pickle.UnpicklingError):
        reason = "it holds something else than tensors, possibly code, which was not run"
    return f"weight file {path} is damaged or of another format ({reason})"


def write_weights(
    path: str | Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict, with texts beside it, as `.safetensors` whole or not at all; raises `WriteError`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})


def load_weights(
    path: str | Path,
    module: nn.Module,
    drop: Sequence[str] = (),
    read: Callable[[str | Path], dict[str, torch.Tensor]] = read_weights,
) -> None:
    """Load a weight file, or a folder of shards, strictly into `module`: the same names and shapes.

    Entries of the file that the module lacks are ignored if their name matches a pattern of `drop`.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, or does not fit; the message names the file, the entry and both shapes.
    """
    path, wanted = Path(path), module.state_dict()
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    if path.suffix == SHARDS:
        _load_shards(path, wanted, shapes, drop)
        state = wanted  # in place; what is left are the hooks of loading
    else:
        state = without_holder(
            read(path), wanted
        )  # MaskGIT's own names begin with "model.": the module decides
        for name in _checked(path, {name: tensor.shape for name, tensor in state.items()}, shapes, drop):
            del state[name]
    module.load_state_dict(state, strict=True)


def _load_shards(
    path: Path, wanted: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], drop: Sequence[str]
) -> None:
    from storage import shards  # takes a second, so not for programs that read ordinary files

    if not path.is_dir():
        raise FileNotFoundError(f"folder of weights {path} does not exist")
    try:
        _checked(path, shards.shard_shapes(path), shapes, drop)
        shards.read_shards(path, wanted)
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _checked(
    path: Path, found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size], drop: Sequence[str]
) -> list[str]:
    """Names to ignore; CheckpointError if the entries of a file are not those of the configured model."""
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{path} lacks the entry {name!r} {list(shape)} of the configured model")
        if found[name] != shape:
            raise CheckpointError(
                f"{path}: entry {name!r} has shape {list(found[name])}, but the configured model needs {list(shape)}"
            )
    extra = found.keys() - wanted.keys()
    dropped = [name for name in extra if any(fnmatch(name, pattern) for pattern in drop)]
    if left := sorted(extra - set(dropped)):
        raise CheckpointError(f"{path} holds the entry {left[0]!r}, which the configured model lacks")
    return dropped


def weight_hash(module: nn.Module) -> str:
    """Sixteen hex digits that identify weights: of a SHA-256 over name, type, shape and bytes of all state entries.

    Token files carry the hash of their tokenizer: tokens of one tokenizer mean nothing to another. A module that was
    loaded in another precision has the hash of its weights as they were stored (`loaded_hash`).
    """
    if getattr(module, "loaded_hash", None):
        return module.loaded_hash
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
    return digest.hexdigest()[:16]
