"""An NPZ file whose first array is filled row by row at its final place, so that no second copy of it is ever made.

An NPZ is a zip of `.npy` files. Stored uncompressed, the first member is a zip header, an npy header and the rows, all
at offsets that are known before the first row is; what follows the rows is small and written at the end. Bytes depend
on the content alone: no time, no order of writing.
"""

import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

_BLOCK = 1 << 22
# Signature, version 4.5 (64-bit sizes), flags, method (stored), time, date (1980-01-01), CRC-32, two sizes (0xFFFFFFFF:
# see the extra field), lengths of the name and of the extra field.
_HEADER = struct.Struct("<4s5H3L2H")
_SIZES = struct.Struct("<HHQQ")
_CRC_AT = 14
_DATE = (1980, 1, 1, 0, 0, 0)


class FirstArray(NamedTuple):
    """Where the first array of the file lies: its member's name and bytes [start, end), and the rows from `offset`."""

    name: str
    start: int
    end: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


def create_npz(path: str | Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Begin a file with one array of zeros, which takes no room before rows are written; no NPZ before `finish_npz`.

    Args:
        path: of the file; what is there is lost.
        name: of the array.
        shape, dtype: of the array; rows are shape[1:].

    Raises:
        OSError: the file cannot be written.
    """
    header, kind = io.BytesIO(), np.dtype(dtype)
    facts = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(shape)}
    npy.write_array_header_1_0(header, facts)
    rows = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    size, member = header.tell() + rows, f"{name}.npy".encode()
    with open(path, "wb") as file:
        lengths = (0xFFFFFFFF, 0xFFFFFFFF, len(member), _SIZES.size)
        file.write(_HEADER.pack(b"PK\3\4", 45, 0, zipfile.ZIP_STORED, 0, 0x21, 0, *lengths) + member)
        file.write(_SIZES.pack(1, 16, size, size) + header.getvalue())
        file.truncate(file.tell() + rows)


def first_array(file: BinaryIO) -> FirstArray:
    """Read where the first array of a file of `create_npz` lies.

    Raises:
        ValueError: it is no such file, or was cut.
    """
    file.seek(0)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:4] != b"PK\3\4":
        raise ValueError("the file does not begin with a zip member")
    name_length, extra_length = _HEADER.unpack(header)[-2:]
    name, extra = file.read(name_length).decode(), file.read(extra_length)
    if extra_length != _SIZES.size or _SIZES.unpack(extra)[0] != 1:
        raise ValueError(f"the file was not begun by this program (extra field of {extra_length} bytes)")
    start = file.tell()
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    end = start + _SIZES.unpack(extra)[2]
    if file.seek(0, os.SEEK_END) < end:
        raise ValueError(f"the file is cut short: {file.tell()} of at least {end} bytes")
    offset = end - int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return FirstArray(name.removesuffix(".npy"), start, end, offset, shape, dtype)


def first_rows(path: str | Path) -> np.memmap:
    """The first array of a file of `create_npz`, memory-mapped read-only; its `offset` says where its rows are.

    Raises:
        ValueError: see `first_array`.
    """
    with open(path, "rb") as file:
        array = first_array(file)
    return np.memmap(path, dtype=array.dtype, mode="r", offset=array.offset, shape=array.shape)


def finish_npz(path: str | Path, arrays: Mapping[str, np.ndarray | Path]) -> None:
    """Make a file of `create_npz` a complete NPZ, in place; memory stays small. Interrupted, it can be called again.

    Args:
        path: the file; all rows are written.
        arrays: further members in order: arrays, or `.npy` files to be copied.

    Raises:
        ValueError: see `first_array`.
        OSError: the disk is full or fails.
    """
    with open(path, "r+b") as file:
        first = first_array(file)
        file.truncate(first.end)  # throws away what an interrupted call appended
        # Read in blocks: pages of a memory map would count as memory of this process.
        checksum, left = 0, first.end - first.start
        file.seek(first.start)
        while left:
            block = file.read(min(left, _BLOCK))
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        file.seek(_CRC_AT)
        file.write(struct.pack("<L", checksum))
        file.seek(first.end)
        # From here on the file is an archive that is being written; it only has to know its first member.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(_member(name), "w", force_zip64=True) as target:
                    _write_array(target, array)
            info = _member(first.name)
            info.CRC, info.file_size, info.compress_size = checksum, *[first.end - first.start] * 2
            info.create_version = info.extract_version = zipfile.ZIP64_VERSION
            archive.filelist.insert(0, info)
        file.flush()
        os.fsync(file.fileno())  # before anybody renames it


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.npy", _DATE)
    info.create_system, info.external_attr = 3, 0o600 << 16  # as if made on Unix, wherever it is made
    info.header_offset = 0
    return info


def _write_array(target: BinaryIO, array: np.ndarray | Path) -> None:
    if isinstance(array, Path):
        with open(array, "rb") as source:
            shutil.copyfileobj(source, target, _BLOCK)
    else:
        npy.write_array(target, np.ascontiguousarray(array), allow_pickle=False)
