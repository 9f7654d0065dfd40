"""Training files of other projects, which hold weights beside optimizers and objects of libraries we do not have.

No code of such a file runs: an inert stand-in replaces every class or function of a foreign library that it names
before torch reads it with `weights_only=True`.
"""

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from storage.weights import CheckpointError, read_weights
from storage.wrappers import find_state, unwrap

KEYS = ("state_dict", "model")  # Lightning; LlamaGen and BEiT
# No stand-ins for these: torch reads the harmless ones and refuses all others.
_TORCH_DECIDES = ("torch", "collections", "builtins", "__builtin__", "_codecs")


class _Inert:
    """Stands for a foreign class or function; instances and results are mappings, which torch lets a file fill."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


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
        stand_ins = [type(name, (_Inert,), {"__module__": module}) for module, name in _foreign_globals(path)]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).split("\n")[0].split(". ")[0]
        raise CheckpointError(f"weight file {path} cannot be read ({reason})") from error
    found = find_state(content, keys)
    if found is None:
        raise CheckpointError(
            f"weight file {path} holds no state dict of tensors, at the top or under {' or '.join(keys)}"
        )
    return unwrap(found)


def _foreign_globals(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every class and function of a foreign library that a file names."""
    with zipfile.ZipFile(path) as archive:
        record = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        operations = pickletools.genops(archive.read(record))  # parses, runs nothing
        named = {argument for code, argument, _ in operations if code.name == "GLOBAL"}  # "module name"
    pairs = [tuple(argument.split(" ", 1)) for argument in sorted(named)]
    return [(module, name) for module, name in pairs if module.split(".")[0] not in _TORCH_DECIDES]
