"""What `torch.save` has written, read without running code from it, in memory that the size of the file bounds.

`weights_only=True` lets a file call a few functions. One of them, `bytearray(n)`, makes as much room as the file says,
and members of the archive may be compressed, which torch never does.
"""

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from storage.arrays import DAMAGE

_PICKLES = 5  # one after the other at the start of a file of torch before 1.6
_REFUSED = {("builtins", "bytearray"), ("__builtin__", "bytearray")}


def load_torch(path: Path, stand_ins: bool = False) -> Any:
    """The content of a file, tensors on the CPU and, where the format allows it, mapped into memory.

    Args:
        stand_ins: read classes and functions of foreign libraries as empty mappings instead of refusing them.

    Raises:
        DAMAGE, pickle.UnpicklingError, AssertionError: it is damaged, or holds something else.
    """
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("its members are compressed, as torch never writes them")
    named = set(_named_globals(path, is_archive))
    if refused := named & _REFUSED:
        raise ValueError(f"it calls {'.'.join(min(refused))}")
    foreign = [pair for pair in sorted(named) if pair[0].split(".")[0] not in _TORCH_DECIDES]
    classes = [type(name, (_Inert,), {"__module__": module}) for module, name in foreign]
    with torch.serialization.safe_globals(classes) if stand_ins else nullcontext():
        # Mapped: a large file is copied only once, into the model, and reading names costs nothing.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)


# No stand-ins for these: torch reads the harmless ones and refuses all others.
_TORCH_DECIDES = ("torch", "collections", "builtins", "__builtin__", "_codecs")


class _Inert:
    """Stands for a foreign class or function; instances and results are mappings, which torch lets a file fill."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def _named_globals(path: Path, is_archive: bool) -> Iterator[tuple[str, str]]:
    """(module, name) of all classes and functions that a file names, as far as it can be parsed."""
    try:
        if is_archive:
            with zipfile.ZipFile(path) as archive:
                records = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
            for record in records:
                yield from _globals_of(record)
        else:
            with open(path, "rb") as file:
                for _ in range(_PICKLES):
                    yield from _globals_of(file)
    except DAMAGE:  # torch finds the same damage, at the same place
        return


def _globals_of(pickled: Any) -> Iterator[tuple[str, str]]:
    for code, argument, _ in pickletools.genops(pickled):  # parses, runs nothing
        if code.name in ("GLOBAL", "INST"):
            module, _, name = argument.partition(" ")
            yield module, name
