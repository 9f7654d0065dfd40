"""Tables in MATLAB files, level 5 of the format: struct arrays of texts and numbers, such as ImageNet's `meta.mat`.

Libraries for these files crash on damaged ones. The format is described in MathWorks' "MAT-File Format": after a header
of 128 bytes follow elements of a type, a size and content; an array is an element that holds elements.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from common.console import printable

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR, _FIRST_NUMBER, _LAST_NUMBER = 2, 4, 6, 15  # classes of arrays
_LARGEST = 1 << 28  # bytes of an unpacked element


def read_table(content: bytes, variable: str, fields: Sequence[str]) -> list[dict[str, str | float]]:
    """Rows of a struct array, with these fields alone: a text, or the first number; a field without either is left out.

    Raises:
        ValueError: it is no such file, damaged, or has no such variable or field.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("not a MATLAB file of level 5")
    for kind, array in _elements(memoryview(content)[128:], order):
        if kind == _COMPRESSED:
            kind, array = next(_elements(memoryview(_unpacked(array)), order), (0, array))
        parts = _elements(array, order) if kind == _MATRIX else iter(())
        flags, shape, name = (part for _, part in (_next(parts), _next(parts), _next(parts)))
        if bytes(name).rstrip(b"\0").decode("latin-1") != variable:
            continue
        if _first(flags, order + "u4") & 0xFF != _STRUCT:
            raise ValueError(f"{variable} is no struct array")
        return _rows(parts, math.prod(np.frombuffer(shape, order + "i4").tolist()), fields, order)
    raise ValueError(f"it holds no {variable}")


def _rows(parts: Iterator, count: int, fields: Sequence[str], order: str) -> list[dict[str, str | float]]:
    length = _first(_next(parts)[1], order + "i4")
    text = bytes(_next(parts)[1])
    if length < 1 or not text:
        raise ValueError("its fields have no names")
    names = [text[at : at + length].split(b"\0")[0].decode("latin-1") for at in range(0, len(text), length)]
    missing = [field for field in fields if field not in names]
    if missing:
        raise ValueError(f"it has no field {missing[0]}, but {', '.join(map(printable, names))}")
    found = []
    for _ in range(count):  # ends at the end of the file, whatever the file says
        row = {name: _next(parts)[1] for name in names}
        values = {field: _value(row[field], order) for field in fields}
        found.append({field: value for field, value in values.items() if value is not None})
    return found


def _value(array: memoryview, order: str) -> str | float | None:
    parts = _elements(array, order)
    flags, _, _ = (part for _, part in (_next(parts), _next(parts), _next(parts)))
    kind, content = next(parts, (0, memoryview(b"")))
    own = _first(flags, order + "u4") & 0xFF
    if own == _CHAR:
        encoding = _TEXTS.get(kind, "latin-1")
        ends = {"<": "-le", ">": "-be"}[order] if encoding in ("utf-16", "utf-32") else ""
        return bytes(content).decode(encoding + ends, "replace")
    if not _FIRST_NUMBER <= own <= _LAST_NUMBER or kind not in _NUMBERS or not len(content):
        return None
    return float(_first(content, order + _NUMBERS[kind]))


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of the elements that stand in a row."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("it is cut short")
        kind, size = np.frombuffer(data[at : at + 8], order + "u4").tolist()
        start = at + 8
        if kind >> 16:  # up to four bytes beside type and size
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            at += 8
        else:
            at = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data) or (start + size > at):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(parts, None)
    if found is None:
        raise ValueError("it is cut short")
    return found


def _first(content: memoryview, kind: str) -> float:
    size = np.dtype(kind).itemsize
    if len(content) < size:
        raise ValueError("it is damaged: a number is missing")
    return np.frombuffer(content[:size], kind)[0].item()


def _unpacked(content: memoryview) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(content, _LARGEST)
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("it is cut short" if len(found) < _LARGEST else "it is too large")
    return found
