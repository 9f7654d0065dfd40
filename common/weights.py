"""Weight files: read without running code from them, loaded strictly, told apart by a hash of their content."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


class CheckpointError(ValueError):
    """Weights cannot be written or read, or belong to another model; the message names the file."""


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file, or of a state dict that torch saved (`.bin`, `.pt`, `.pth`), on the CPU.

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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on with advice that does not apply
        raise CheckpointError(f"weight file {path} is damaged or of another format ({reason})") from error
    if not isinstance(state, Mapping) or not all(torch.is_tensor(tensor) for tensor in state.values()):
        raise CheckpointError(f"weight file {path} is not a state dict of tensors")
    return dict(state)


def load_weights(path: str | Path, module: nn.Module) -> None:
    """Load a weight file strictly into `module`: the same names, the same shapes.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, or does not fit; the message names the file, the entry and both shapes.
    """
    state, wanted = read_weights(path), module.state_dict()
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
