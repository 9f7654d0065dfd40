"""Weight files: read without running code from them, loaded strictly, told apart by a hash of their content."""

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from storage.files import atomic_file

# What readers raise for files that are cut, of another format, or hold more than tensors.
_UNREADABLE = (
    SafetensorError,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
)


class CheckpointError(ValueError):
    """Weights cannot be written or read, or belong to another model; the message names the file."""


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file, or of a state dict that torch saved (`.bin`, `.pt`, `.pth`), on the CPU.

    Code in a file is never run: what is not a tensor is refused.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapped rather than read: large files are copied once, into the model, and names alone cost nothing.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except _UNREADABLE as error:
        raise CheckpointError(_unreadable(path, error)) from error
    if not isinstance(state, Mapping) or not all(torch.is_tensor(tensor) for tensor in state.values()):
        raise CheckpointError(f"weight file {path} is not a state dict of tensors")
    return dict(state)


def weight_names(path: str | Path) -> set[str]:
    """Names of the entries of a weight file, without reading their values; raises as `read_weights`."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return set(read_weights(path))
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except _UNREADABLE as error:
        raise CheckpointError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on with advice that does not apply
    if isinstance(error, pickle.UnpicklingError):
        reason = "it holds something else than tensors, possibly code, which was not run"
    return f"weight file {path} is damaged or of another format ({reason})"


def write_weights(
    path: str | Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict as `.safetensors`, whole or not at all.

    Args:
        metadata: texts that are stored beside the tensors.

    Raises:
        WriteError: the folder cannot be written or the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})


def load_weights(
    path: str | Path,
    module: nn.Module,
    drop: Sequence[str] = (),
    read: Callable[[str | Path], dict[str, torch.Tensor]] = read_weights,
) -> None:
    """Load a weight file strictly into `module`: the same names, the same shapes.

    Args:
        drop: names, with wildcards, of entries that files may hold and that are left out where the module has none.
        read: reads the file into a state dict of ours.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, or does not fit; the message names the file, the entry and both shapes.
    """
    state, wanted = read(path), module.state_dict()
    surplus = [name for name in state if name not in wanted and any(fnmatch(name, d) for d in drop)]
    for name in surplus:
        del state[name]
    for name, tensor in wanted.items():
        if name not in state:
            raise CheckpointError(
                f"{path} lacks the entry {name!r} {list(tensor.shape)}; was it made by another model?"
            )
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: entry {name!r} has shape {list(state[name].shape)},"
                f" but the configured model needs {list(tensor.shape)}"
            )
    extra = sorted(state.keys() - wanted.keys())
    if extra:
        raise CheckpointError(
            f"{path} holds the entry {extra[0]!r}, which the configured model does not have"
        )
    module.load_state_dict(state, strict=True)


def weight_hash(module: nn.Module) -> str:
    """Sixteen hex digits that identify a module's weights, whatever file they came from and wherever they are now.

    The beginning of a SHA-256 over the name, type, shape and bytes of every state-dict entry. Tokens carry the hash
    of their tokenizer, since the tokens of one tokenizer mean nothing to another.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
