"""Dicts of numpy arrays that somebody pickled, read without running code from the file.

A pickle is a program that calls what it names. Here every name stands for a record of what it was called with, all but
the few that numpy writes for an array are refused, and arrays are made from their bytes, which must be as many as
their shapes say.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from storage.arrays import DAMAGE, damage_named

MOST_BYTES = 1 << 33  # of a file
_MOST_DEEP = 8  # dicts in dicts
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_MODULES += ("numpy.core.numeric", "numpy._core.numeric")
_NAMES = ("ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar")
_OLD_BYTES = (("_codecs", "encode"), ("__builtin__", "bytes"))  # in protocols before 3; the second if empty
_KINDS = "fiub"  # of numbers
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


def read_pickled_arrays(path: str | Path) -> dict[str, Any]:
    """The dict in a pickle, with arrays of numbers, numbers, texts and further dicts as its values.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, or holds or calls anything else.
    """
    with damage_named(f"pickle {path} cannot be read"):
        if (size := Path(path).stat().st_size) > MOST_BYTES:
            raise ValueError(f"{size} bytes are more than statistics have")
        content = Path(path).read_bytes()
        _check_program(content)
        try:
            found = _Reader(io.BytesIO(content)).load()
        except (pickle.UnpicklingError, *DAMAGE) as error:
            raise ValueError(str(error)) from error
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, expected a dict of arrays")
        return _plain(found, 0)


def _check_program(content: bytes) -> None:
    """Refuse a program that makes room for more than it has: a place in the memo costs what its number says."""
    steps, highest = 0, 0
    for code, argument, _ in pickletools.genops(content):  # parses, runs nothing
        steps += 1
        if code.name in _MEMO:
            highest = max(highest, argument)
    if highest > 2 * steps + 256:
        raise ValueError(f"it numbers {highest} objects in a program of {steps} steps")


class _Record:
    """What a name was called with, and the state that was given to the result."""

    def __init__(self, name: str, arguments: tuple) -> None:
        self.name, self.arguments, self.state = name, arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Named:
    """Stands for a class or function of numpy; calling it records the call."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> _Record:
        return _Record(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"it changes {self.name}")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _NAMES:
            return _Named(name)
        if (module, name) in _OLD_BYTES:
            return _Named(name)
        raise ValueError(f"it names {module}.{name}, which no array needs; nothing was run")

    def persistent_load(self, _: Any) -> Any:
        raise ValueError("it refers to something outside the file")


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        if depth > _MOST_DEEP:
            raise ValueError("its dicts are nested too deeply")
        if not all(isinstance(key, str) for key in value):
            raise ValueError("its keys are not all texts")
        return {key: _plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, _Record):
        return _array(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"it holds a {type(value).__name__}, expected arrays, numbers and texts")


def _array(record: _Record) -> Any:
    if record.name == "_reconstruct" and isinstance(record.state, tuple) and len(record.state) == 5:
        _, shape, dtype, fortran, data = record.state
    elif record.name == "_frombuffer" and len(record.arguments) == 4:
        data, dtype, shape, order = record.arguments
        fortran = order == "F"
    elif record.name == "scalar" and len(record.arguments) == 2:
        (dtype, data), shape, fortran = record.arguments, (), False
    else:
        raise ValueError(f"its call of {record.name} makes no array of numbers")
    return _from_bytes(_bytes(data), _dtype(dtype), shape, bool(fortran))


def _from_bytes(data: bytes | bytearray, dtype: np.dtype, shape: Any, fortran: bool) -> np.ndarray:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the shape {shape!r:.80}")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array {list(shape)} of {dtype} has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _bytes(data: Any) -> bytes | bytearray:
    if isinstance(data, _Record) and data.name == "encode" and data.arguments[1:] == ("latin1",):
        data = data.arguments[0].encode("latin1") if isinstance(data.arguments[0], str) else None
    if isinstance(data, _Record) and (data.name, data.arguments) == ("bytes", ()):
        data = b""
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"an array is made of a {type(data).__name__}, expected bytes")
    return data


def _dtype(record: Any) -> np.dtype:
    if not (isinstance(record, _Record) and record.name == "dtype" and record.arguments):
        raise ValueError("an array has no type")
    text = record.arguments[0]
    if not (isinstance(text, str) and len(text) == 2 and text[0] in _KINDS and text[1] in "1248"):
        raise ValueError(f"an array has the type {text!r:.80}, expected numbers")
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "="
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"an array has the byte order {order!r:.80}")
    return np.dtype(order + text)
