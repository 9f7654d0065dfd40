"""Sizes that a file declares are compared with the bytes that are there, before room is made for them."""

import gc
import io
import struct
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.token_arrays import TokenArrays
from evaluator.image_files import ArrayImages
from evaluator.reference import open_reference
from storage.arrays import ArrayFile, read_header, read_npy
from storage.npz import create_npz, first_rows


def npy(header: str, content: bytes = b"") -> bytes:
    raw = header.encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(raw)) + raw + content


def declares(shape: str, dtype: str = "<f8") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


HEADERS = {
    "beyond memory": (declares(f"({2**60},)"), f"its header declares {2**63} bytes of numbers, 24 are there"),
    "beyond 64 bits": (declares(f"({2**62}, {2**62})"), "its header declares"),
    "too few": (declares("(2,)"), "its header declares 16 bytes of numbers, 24 are there"),
    "negative": (declares("(-3,)"), r"it holds float64 \[-3\]"),
    "without bytes": (declares(f"({2**40},)", "|V0"), "it holds"),
    "objects": (declares("(3,)", "|O"), "Python objects, which are not read"),
    "half a header": ("{'descr': (" + " " * 50 + "\n", "cannot be read: "),
    "deep": ("-" * 9000 + "1\n", "cannot be read: "),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_are_not_believed(tmp_path, case):
    header, reason = HEADERS[case]
    path = tmp_path / "x.npy"
    path.write_bytes(npy(header, bytes(24)))
    with pytest.raises(ValueError, match=f"x.npy cannot be read: .*{reason}|x.npy {reason}") as caught:
        read_npy(path)
    assert "\n" not in str(caught.value)


WRITTEN = [
    np.zeros((2, 3), "<f4"),
    np.asfortranarray(np.ones((2, 3))),
    np.array(5),
    np.array("text"),
    np.zeros(4, "S7"),
]


@pytest.mark.parametrize("array", WRITTEN, ids=str)
def test_headers_are_read_as_numpy_reads_them(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    read = read_npy(tmp_path / "x.npy")
    assert np.array_equal(read, array) and (read.dtype, read.flags.f_contiguous) == (
        array.dtype,
        array.flags.f_contiguous,
    )


def test_headers_of_other_programs_are_read():
    content = b"{\"shape\":(2L,3L),\n'descr' : '|u1' , 'fortran_order':True}   \n"
    stream = io.BytesIO(npy(content.decode()))
    assert read_header(stream) == ((2, 3), True, np.dtype("u1")) and not stream.read()


def test_headers_are_read_by_several_threads_at_once():
    """CPython before 3.11.9 confuses what threads parse by `ast` when garbage is collected meanwhile."""
    stream = npy(declares("(5, 1)"))
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    collected = [lambda *_: time.sleep(0)]  # another thread's turn
    try:
        gc.set_threshold(20)
        gc.callbacks.extend(collected)
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as pool:
            shapes = list(pool.map(lambda _: read_header(io.BytesIO(stream))[0], range(4000)))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collected[0])
        sys.setswitchinterval(interval)
    assert shapes == [(5, 1)] * 4000


def bomb(tmp_path, name: str, declared: int, content: bytes, method: int = zipfile.ZIP_DEFLATED):
    """An archive with one member whose directory declares another size."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(f"{name}.npy", content)
        archive.filelist[0].file_size = declared
    path = tmp_path / "x.npz"
    path.write_bytes(stream.getvalue())
    return path


def test_members_are_not_believed(tmp_path):
    path = bomb(tmp_path, "mu", 2**60, npy(declares(f"({2**57},)"), bytes(24)))
    with ArrayFile(path) as arrays, pytest.raises(ValueError, match=f"mu: it declares {2**60} bytes in"):
        arrays.read("mu")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("sigma.npy", b"")
    with pytest.raises(ValueError, match="x.npz cannot be read: mu: it declares"):
        open_reference(path)
    path = bomb(tmp_path, "arr_0", 2**60, npy(declares(f"({2**40}, 4, 4, 3)", "|u1"), bytes(96)))
    with pytest.raises(ValueError, match="x.npz cannot be read as images: it declares"):
        ArrayImages(path)


def test_what_is_larger_than_it_may_be_is_not_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", mu=np.zeros(1 << 20))
    with ArrayFile(tmp_path / "x.npz") as arrays:
        with pytest.raises(ValueError, match="mu: 8388608 bytes are more than 1000"):
            arrays.read("mu", 1000)
        assert arrays.read("mu").shape == (1 << 20,)
    with pytest.raises(ValueError, match="bytes are more than 8"):
        np.save(tmp_path / "x.npy", np.zeros(2))
        read_npy(tmp_path / "x.npy", 8)


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3)), np.array("text"), np.zeros(0)]
)
def test_arrays_are_read_as_numpy_does(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", a=array)
    for found in (read_npy(tmp_path / "x.npy"), ArrayFile(tmp_path / "x.npz").read("a")):
        assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()


def test_protocols_and_labels_are_checked(tmp_path):
    path, square = tmp_path / "x.npz", {"mu": np.zeros(3), "sigma": np.eye(3)}
    for protocol in (
        '{"format": 1, "counts": []}',
        '{"format": 1, "counts": {"pool": "many"}}',
        "[" * 20_000,
    ):
        np.savez(path, protocol=np.array(protocol), **square)
        with pytest.raises(ValueError, match=r"reference .*x\.npz cannot be read: "):
            open_reference(path)
    np.savez(path, mu=np.array(["a", "b", "c"]), sigma=np.eye(3))
    with pytest.raises(ValueError, match="mu holds <U1, expected numbers"):
        open_reference(path)


def test_token_arrays_and_unfinished_rows(tmp_path):
    for name in ("x8_codes", "x8_labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.npy").write_bytes(npy(declares(f"(1, 1, {2**50})", "<i8"), bytes(8)))
    with pytest.raises(ValueError, match=r"0\.npy cannot be read: its header declares"):
        TokenArrays(tmp_path).shape()
    path = tmp_path / "rows.npz"
    create_npz(path, "arr_0", (4, 2), "uint8")
    path.write_bytes(path.read_bytes().replace(b"(4, 2)", b"(9, 9)"))
    with pytest.raises(ValueError, match=r"rows\.npz cannot be read: uint8 \[9, 9\] do not fill its 8 bytes"):
        first_rows(path)
