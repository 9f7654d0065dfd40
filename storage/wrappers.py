"""What other programs put around a state dict, taken off again.

{"model": state, "ema": state, "optimizer": ..., "epoch": 3}    a training file; averaged weights are preferred
module.encoder..., _orig_mod.encoder..., model.encoder...       names of DDP, torch.compile and wrapping modules
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# Where training files keep weights, averaged ones first.
KEYS = ("ema", "model_ema", "ema_state_dict", "state_dict", "model", "module")
PARALLEL, HOLDER = "module.", "model."
_COMPILED = "_orig_mod."


def find_state(content: Any, keys: Sequence[str] = KEYS) -> dict[str, torch.Tensor] | None:
    """The state dict below the first of `keys` that has one, or the content itself; None if it is none."""
    if not isinstance(content, Mapping):
        return None
    for candidate in (*(content.get(key) for key in keys), content):
        if not isinstance(candidate, Mapping) or not candidate:
            continue
        if all(isinstance(name, str) and torch.is_tensor(value) for name, value in candidate.items()):
            return dict(candidate)
    return None


def plain_names(names: Sequence[str]) -> dict[str, str]:
    """{name: name without what DDP and torch.compile put into all of them}."""
    found = {name: name.replace(_COMPILED, "") for name in names}  # parts of a model may be compiled, too
    while found and all(name.startswith(PARALLEL) for name in found.values()):
        found = {name: short.removeprefix(PARALLEL) for name, short in found.items()}
    return found


def unwrap(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under its plain names."""
    names = plain_names(list(state))
    return {names[name]: tensor for name, tensor in state.items()}


def without_holder(state: dict[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """The part of a state dict below `model.`, if only there are names that are `wanted`."""
    part = {n.removeprefix(HOLDER): tensor for n, tensor in state.items() if n.startswith(HOLDER)}
    return part if not state.keys() & set(wanted) and part.keys() & set(wanted) else state


def impostor(path: Path) -> str | None:
    """What a file is that only has the name of a weight file, with what to do; None if its first bytes show nothing."""
    with open(path, "rb") as file:
        start = file.read(256).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights: run `git lfs pull`, or download the file itself"
    if start[:1] == b"<":
        return "a web page, not the weights: download the file itself"
    if not start:
        return "damaged: it is empty"
    return None
