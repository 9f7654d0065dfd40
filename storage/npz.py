"""NPZ files: written whole, or begun with an array whose rows are filled in place, in any order.

An NPZ is a zip of `.npy` files. The first member of an uncompressed one is a zip header, an npy header and the rows, at
offsets that are known in advance; small arrays follow at the end. Equal content gives equal bytes.
"""

import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from storage.arrays import array_bytes, damage_named, read_header
from storage.files import atomic_file

_BLOCK = 1 << 22  # bytes: 4 MiB
_CRC_AT, _LENGTHS_AT, _HEADER_BYTES = 14, 26, 30  # zip member header: CRC-32; lengths of name and extra field
_SIZES = struct.Struct("<HHQQ")  # extra field of large members: kind 1, its length, size, compressed size
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest of zip; the bytes must not depend on the time


class Rows(NamedTuple):
    """An array that is made while it is written: its shape and type, and its rows in order."""

    shape: tuple[int, ...]
    dtype: str
    rows: Iterable[np.ndarray]


Content = np.ndarray | Path | Rows  # an array, a `.npy` file to be copied, or rows to be made


def write_npz(path: str | Path, arrays: Mapping[str, Content]) -> None:
    """Write an uncompressed NPZ whole or not at all, in little memory; raises `WriteError`."""
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, arrays)


def create_npz(path: str | Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Begin a file with one array of zeros; it becomes an NPZ by `finish_npz`. Replaces an existing file."""
    header = _npy_header(shape, dtype)
    rows = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with open(path, "wb") as file:
        file.write(_member(name, len(header) + rows).FileHeader(zip64=True) + header)
        file.truncate(file.tell() + rows)  # a sparse file: takes no space until rows are written


def first_rows(path: str | Path) -> np.memmap:
    """The first array of a file of `create_npz`, memory-mapped read-only; `offset` is where its rows begin.

    Raises:
        ValueError: the file was not made by `create_npz`, or is cut short.
    """
    with damage_named(f"{path} cannot be read"), open(path, "rb") as file:
        _, start, end = _first_member(file)
        file.seek(start)
        shape, _, dtype = read_header(file)
        if file.tell() + array_bytes(shape, dtype) != end:
            raise ValueError(f"{dtype} {list(shape)} do not fill its {end - file.tell()} bytes")
        return np.memmap(path, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


def finish_npz(path: str | Path, arrays: Mapping[str, Content]) -> None:
    """Complete a file of `create_npz` in place, adding `arrays`; after an interruption, call it again.

    Raises:
        ValueError: the file was not made by `create_npz`, or is cut short.
        OSError: the disk is full or fails.
    """
    with open(path, "r+b") as file:
        name, start, end = _first_member(file)
        file.truncate(end)  # throws away what an interrupted call appended
        checksum, left = 0, end - start  # read in blocks: pages of a memory map count as used memory
        file.seek(start)
        while left:
            block = file.read(min(left, _BLOCK))
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        file.seek(_CRC_AT)
        file.write(struct.pack("<L", checksum))
        file.seek(end)
        with zipfile.ZipFile(file, "w") as archive:  # "w" keeps what lies before the current position
            _add(archive, arrays)
            info = _member(name, end - start, checksum)
            info.create_version = info.extract_version = zipfile.ZIP64_VERSION
            info.header_offset = 0
            archive.filelist.insert(0, info)  # the archive's directory lists the rows first
        file.flush()
        os.fsync(file.fileno())  # on the disk before the caller renames the file


def _first_member(file: BinaryIO) -> tuple[str, int, int]:
    """Name and byte range [start, end) of the first `.npy` member of a file of `create_npz`."""
    file.seek(0)
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or header[:4] != b"PK\3\4":
        raise ValueError("the file does not begin with a zip member")
    name_length, extra_length = struct.unpack("<2H", header[_LENGTHS_AT:])
    name, extra = file.read(name_length).decode(), file.read(extra_length)
    if extra_length != _SIZES.size or _SIZES.unpack(extra)[0] != 1:
        raise ValueError(f"the file was not begun by this program (extra field of {extra_length} bytes)")
    start = file.tell()
    end = start + _SIZES.unpack(extra)[2]  # compressed size = size: stored members
    if file.seek(0, os.SEEK_END) < end:  # a copy or a disk error cut it
        raise ValueError(f"the file is cut short: {file.tell()} of at least {end} bytes")
    return name.removesuffix(".npy"), start, end


def _member(name: str, size: int = 0, checksum: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.npy", _DATE)
    info.CRC, info.file_size, info.compress_size = checksum, size, size
    info.create_system, info.external_attr = 3, 0o600 << 16  # as if made on Unix, wherever it is made
    return info


def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    header = io.BytesIO()
    facts = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    npy.write_array_header_1_0(header, facts)
    return header.getvalue()


def _add(archive: zipfile.ZipFile, arrays: Mapping[str, Content]) -> None:
    for name, content in arrays.items():
        with archive.open(_member(name), "w", force_zip64=True) as target:
            if isinstance(content, Path):
                with open(content, "rb") as source:
                    shutil.copyfileobj(source, target, _BLOCK)
            elif isinstance(content, Rows):
                target.write(_npy_header(content.shape, content.dtype))
                for row in content.rows:
                    target.write(np.ascontiguousarray(row, dtype=content.dtype).tobytes())
            else:
                npy.write_array(target, np.asarray(content, order="C"), allow_pickle=False)
