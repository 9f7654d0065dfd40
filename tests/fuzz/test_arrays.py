"""NPZ and npy files: references, images, token pairs, and files of our own that are not finished."""

import io
import json
import struct
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.lib import format as npy

from data.token_arrays import TokenArrays
from evaluator.image_files import ArrayImages, member_shape
from evaluator.reference import open_reference
from storage.npz import first_rows
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import damage, damaged, edits, garbage, numbers

_HEADERS = [
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 3), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 2), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '|S2147483647', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4', (1000000, 1000000))], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': ('<f8', (3,)), 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': 3, 'fortran_order': 'x', 'shape': (2,), }",
    "-" * 9000 + "1",
    "(" * 5000,
    "[" * 150 + "]" * 150,
    "__import__('os').system('touch ../marker')",
    "{**{}}",
    "",
]


def _array(shape: tuple, dtype: str) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def _npy(shape: tuple, dtype: str, declared: tuple | None, header: str | None, version: int) -> bytes:
    """An npy stream, which declares another shape or has another header if given."""
    text = header
    if text is None:
        text = str({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": declared or shape})
    raw = text.encode() + b"\n"
    length = struct.pack("<H", len(raw)) if version == 1 else struct.pack("<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + _array(shape, dtype).tobytes()


_shapes = st.sampled_from([(), (1,), (3,), (3, 3), (2, 4, 4, 3), (1, 2, 3), (2, 3), (0, 4, 4, 3), (4, 4)])
_dtypes = st.sampled_from(["<f8", "<f4", "<i8", "|u1", "|u1", "|i1", "<f2", ">f8", "|b1", "<c8", "<U3"])
_declared = st.none() | st.none() | st.lists(numbers, max_size=4).map(tuple)
_sound = st.none()
_npys = st.builds(
    _npy,
    _shapes,
    _dtypes,
    _declared,
    _sound | _sound | _sound | st.sampled_from(_HEADERS),
    st.sampled_from([1, 1, 1, 2, 3, 9]),
)
PROTOCOL = {"format": 1, "counts": {"pool": 5}, "image_set": "training", "images": {"height": 4}}
_odd = st.sampled_from([None, [], 3, "x", {"pool": "many"}])
_protocols = st.one_of(
    st.just(PROTOCOL),
    st.builds(
        lambda key, value: {**PROTOCOL, key: value},
        st.sampled_from(sorted(PROTOCOL)),
        _odd,
    ),
    st.just("[" * 20_000),
).map(lambda p: np.array(p if isinstance(p, str) else json.dumps(p)))


def _dump(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


@cache
def _good(name: str) -> bytes:
    content = {
        "mu": ((3,), "<f8"),
        "sigma": ((3, 3), "<f8"),
        "arr_0": ((2, 4, 4, 3), "|u1"),
        "arr_1": ((2,), "<i8"),
    }
    return _dump(_array(*content.get(name.removesuffix("_s"), ((2, 3), "<i8"))))


@cache
def _bomb(megabytes: int) -> bytes:
    """An honest member that is much larger than its file."""
    return _npy((0,), "<f8", (megabytes << 17,), None, 1) + bytes(megabytes << 20)


def _zip(members: list[tuple[str, bytes]], method: int, lies: list[tuple[int, str, int]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, method)
        for number, field, value in lies:  # in the directory at the end, which readers trust
            if archive.filelist:
                setattr(
                    archive.filelist[number % len(archive.filelist)],
                    field,
                    abs(value) % 2 ** (32 if field == "CRC" else 62),
                )
    return stream.getvalue()


_names = st.sampled_from(
    ["mu", "sigma", "mu_s", "sigma_s", "arr_0", "arr_1", "protocol", "mu_dinov2", "../x", ""]
)
_member = st.builds(
    lambda name, own: (f"{name}.npy", _good(name) if own is None else own),
    _names,
    st.none() | st.none() | _npys | garbage | _protocols.map(_dump) | st.just(16).map(_bomb),
)
_base = st.sampled_from(
    [["mu", "sigma"], ["mu", "sigma", "arr_0", "arr_1"], ["arr_0"], ["mu_s", "sigma_s"], []]
)
_FIELDS = ["file_size", "compress_size", "header_offset", "CRC"]
_lies = st.lists(
    st.tuples(st.sampled_from(range(0, 4)), st.sampled_from(_FIELDS), numbers),
    max_size=1,
)
_zips = st.builds(
    lambda base, more, method, lies: _zip([*((f"{n}.npy", _good(n)) for n in base), *more], method, lies),
    _base,
    st.lists(_member, max_size=2, unique_by=lambda m: m[0]),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    st.just([]) | _lies,
)


def _read_npz(folder: Path, what: str) -> None:
    path = next(folder.iterdir())
    if what == "reference":
        open_reference(path)
    elif what == "shape":
        member_shape(path, "arr_0")
        ArrayImages(path)
    else:
        images = ArrayImages(path)
        for _ in images.images(range(images.count)):
            pass
        images.digest()


def _case(content: bytes, what: str) -> Case:
    return Case({"file.npy" if content.startswith(b"\x93N") else "file.npz": content}, what)


NPZ = Reader(
    "npz",
    st.builds(
        _case,
        st.one_of(_zips, damaged(_zips), _npys, garbage),
        st.sampled_from(["reference", "reference", "images", "shape"]),
    ),
    _read_npz,
)


def _pair(codes: bytes, labels: bytes, more: bool) -> Case:
    files = {"imagenet8_codes/0.npy": codes, "imagenet8_labels/0.npy": labels}
    return Case(files | ({"imagenet8_codes/1.npy": codes} if more else {}))


def _read_pairs(folder: Path, _: object) -> None:
    arrays = TokenArrays(folder)
    shape = arrays.shape()
    for _ in arrays.blocks(range(arrays.count()), shape=shape, codebook_size=48, num_classes=3):
        pass


_codes = st.just(_dump(_array((1, 2, 6), "<i8")))
_labels = st.just(_dump(_array((1,), "<i8")))
ARRAYS = Reader(
    "token_arrays",
    st.builds(
        _pair,
        st.one_of(_codes, damaged(_codes), _npys),
        st.one_of(_labels, _labels, damaged(_labels), _npys),
        st.sampled_from([False, False, True]),
    ),
    _read_pairs,
    named="inside",
)


@cache
def _unfinished() -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (4, 4, 4, 3)})
    content = header.getvalue() + bytes(192)
    info = zipfile.ZipInfo("arr_0.npy", (1980, 1, 1, 0, 0, 0))
    info.CRC, info.file_size, info.compress_size = 0, len(content), len(content)
    return info.FileHeader(zip64=True) + content


ROWS = Reader(
    "first_rows",
    st.builds(lambda edits: Case({"pixels.npz": damage(_unfinished(), edits)}), edits),
    lambda folder, _: first_rows(folder / "pixels.npz"),
)


def test_npz_files():
    check(NPZ)


def test_pairs_of_arrays():
    check(ARRAYS)


def test_unfinished_archives():
    check(ROWS)
