"""NPZ and npy files of anybody, read in memory that the size of the file bounds, whatever sizes it declares.

numpy makes room for the shape in a header before it reads the first number, and believes what a zip says of the size of
its members. Here both must agree with each other and with the bytes that are there.
"""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

MOST_BYTES = 1 << 30  # of one array that is read at once
# What deflate can make of a byte. Members of other methods, which numpy does not write, are not read.
_MOST_GROWTH = 1032
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER, _LENGTHS_AT = 30, 26
# What zipfile, zlib and numpy raise for damaged files. RuntimeError: encrypted, or a method of
# compression that is not known.
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError, LookupError)
DAMAGE += (RuntimeError, OverflowError, MemoryError, AttributeError)
_LONGEST_HEADER = 10_000  # bytes, as in numpy
_ITEM = re.compile(  # of a header; L behind a number was written by Python 2
    r"""\s* ['"] (?:
        descr ['"] \s*:\s* ['"] (?P<descr> [<>|=]?[A-Za-z?]\w{0,20}(\[\w{1,9}\])? ) ['"]
        | fortran_order ['"] \s*:\s* (?P<order> True|False )
        | shape ['"] \s*:\s* (?P<shape> \( \s* ( (-?\d{1,40}L?\s*,\s*)+ (-?\d{1,40}L?)? )? \s* \) )
    ) \s* (,|(?=}))""",
    re.VERBOSE,
)


@contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turn what goes wrong with reading into a ValueError of one line that begins with `what`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        reason = " ".join((str(error).strip("'\"") or type(error).__name__).split())
        raise ValueError(f"{what}: {reason[:300]}") from error


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran order, dtype) of an npy stream; reads up to the first element.

    Raises:
        ValueError: it is no npy stream of version 1, 2 or 3, or holds Python objects or no numbers at all.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"npy version {version[0]}.{version[1]} is not known")
    length = struct.Struct("<H" if version == (1, 0) else "<I")
    (size,) = length.unpack(_exactly(file, length.size))
    if size > _LONGEST_HEADER:
        raise ValueError(f"its header has {size} bytes, at most {_LONGEST_HEADER} are read")
    shape, fortran, dtype = _parse_header(_exactly(file, size).decode("latin-1"))
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if any(side < 0 for side in shape) or not dtype.itemsize:
        raise ValueError(f"it holds {dtype} {list(shape)}")
    return shape, fortran, dtype


def _parse_header(text: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """An npy header is a Python dict of three items.

    numpy gives it to `ast`, which fails now and then when several threads do so at once (CPython before 3.11.9), and
    reads a whole language. Records (a list as `descr`) are not read.
    """
    found: dict[str, str] = {}
    inside = text.strip()
    place, end = 1, len(inside) - 1
    if inside[:1] + inside[-1:] != "{}":
        raise ValueError(f"its header is no dict: {inside[:40]!r}")
    while inside[place:end].strip():
        item = _ITEM.match(inside, place)
        if item is None:
            raise ValueError(f"its header cannot be read at {inside[place : place + 40]!r}")
        found |= {name: value for name, value in item.groupdict().items() if value is not None}
        place = item.end()
    if len(found) < 3:
        raise ValueError("its header lacks descr, fortran_order or shape")
    shape = tuple(int(side.rstrip("L")) for side in re.findall(r"-?\d+L?", found["shape"]))
    return shape, found["order"] == "True", np.dtype(found["descr"])


def _exactly(file: Any, size: int) -> bytes:
    content = b""
    while len(content) < size and (part := file.read(size - len(content))):
        content += part
    if len(content) < size:
        raise ValueError("it ends within its header")
    return content


def array_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array, exact for any shape."""
    return math.prod(shape) * dtype.itemsize


def read_npy(path: str | Path, most: int = MOST_BYTES) -> np.ndarray:
    """The array of a `.npy` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, has more than `most` bytes, or holds Python objects; the message names it.
    """
    with damage_named(f"{path} cannot be read"), open(path, "rb") as file:
        return _read_array(file, Path(path).stat().st_size, most)


class ArrayFile:
    """The arrays of an `.npz`, read one by one; closed by `with`.

    Args:
        file: a path, or an open file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no zip archive; the message has only the reason.
    """

    def __init__(self, file: str | Path | IO[bytes]) -> None:
        with damage_named("no NPZ file"):
            self._zip = zipfile.ZipFile(file)
        self._members = {info.filename.removesuffix(".npy"): info for info in self._zip.infolist()}

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str, most: int = MOST_BYTES) -> np.ndarray:
        """One array.

        Raises:
            ValueError: there is none of this name, it is damaged, has more than `most` bytes or holds Python objects.
        """
        with damage_named(name):
            if name not in self._members:
                raise ValueError("it is missing")
            info = self._members[name]
            check_member(info)
            with self._zip.open(info) as member:
                return _read_array(member, info.file_size, most)


def check_member(info: zipfile.ZipInfo) -> None:
    """Raise ValueError if a member of a zip declares more bytes than its compressed ones can hold."""
    if info.compress_type not in _METHODS:
        raise ValueError(f"it is compressed by method {info.compress_type}, expected none or deflate")
    growth = 1 if info.compress_type == zipfile.ZIP_STORED else _MOST_GROWTH
    if info.file_size > growth * info.compress_size:
        raise ValueError(f"it declares {info.file_size} bytes in {info.compress_size} compressed ones")


def stored_at(path: Path, info: zipfile.ZipInfo) -> int:
    """Where in a zip the content of an uncompressed member begins; ValueError if it does not lie in the file."""
    with open(path, "rb") as file:
        # The lengths of name and extra field end the local header; the central directory may differ.
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise ValueError("its directory leads to no member")
        start = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[_LENGTHS_AT:]))
    if start + info.file_size > path.stat().st_size:
        raise ValueError("it is cut short")
    return start


def _read_array(file: Any, size: int, most: int) -> np.ndarray:
    """The array of an npy stream of `size` bytes."""
    counted = _Counted(file)
    shape, fortran, dtype = read_header(counted)
    needed = array_bytes(shape, dtype)
    if needed != size - counted.position:
        left = size - counted.position
        raise ValueError(f"its header declares {needed} bytes of numbers, {max(left, 0)} are there")
    if needed > most:
        raise ValueError(f"{needed} bytes are more than {most}")
    content = bytearray()
    while len(content) < needed and (part := file.read(min(needed - len(content), 1 << 24))):
        content += part
    if len(content) < needed:
        raise ValueError(f"it is cut short: {len(content)} of {needed} bytes")
    file.read(1)  # at the end of a member its checksum is compared
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


class _Counted:
    """A stream that knows how far it was read."""

    def __init__(self, file: Any) -> None:
        self._file, self.position = file, 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.position += len(content)
        return content
