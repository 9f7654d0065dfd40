"""Training files of other projects, which hold weights beside optimizers and objects of libraries we do not have.

No code of such a file runs: an inert stand-in replaces every class or function of a foreign library that it names
before torch reads it (`storage.torch_files`).
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

from storage.torch_files import load_torch
from storage.weights import CheckpointError, read_weights
from storage.wrappers import find_state, unwrap

KEYS = ("state_dict", "model")  # Lightning; LlamaGen and BEiT


def read_nested_weights(path: str | Path, keys: Sequence[str] = KEYS) -> dict[str, torch.Tensor]:
    """The state dict of a training file, on the CPU: below the first of `keys` that it has, or the file itself.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, holds no state dict, or names code of torch or of Python itself.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return read_weights(path)
    try:
        content = load_torch(path, stand_ins=True)
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).split("\n")[0].split(". ")[0]
        raise CheckpointError(f"weight file {path} cannot be read ({reason})") from error
    found = find_state(content, keys)
    if found is None:
        raise CheckpointError(
            f"weight file {path} holds no state dict of tensors, at the top or under {' or '.join(keys)}"
        )
    return unwrap(found)
