import io
import zipfile

import numpy as np
import pytest

from evaluator.image_files import ArrayImages
from storage.npz import create_npz, finish_npz, first_rows

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)


def fill(path, rows, order=None):
    """Rows at their places, in any order."""
    create_npz(path, "arr_0", rows.shape, str(rows.dtype))
    view = first_rows(path)
    with open(path, "r+b") as file:
        for i in range(len(rows)) if order is None else order:
            file.seek(view.offset + i * rows[0].nbytes)
            file.write(rows[i].tobytes())
    return path


def test_numpy_zipfile_and_the_evaluator_read_what_was_written(tmp_path):
    path, tokens = fill(tmp_path / "a.npz", PIXELS), tmp_path / "tokens.npy"
    np.save(tokens, np.arange(14).reshape(7, 2))
    assert np.array_equal(first_rows(path), PIXELS)
    finish_npz(path, {"labels": np.arange(7), "tokens": tokens})
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "labels", "tokens"]
        assert np.array_equal(arrays["arr_0"], PIXELS) and arrays["arr_0"].dtype == np.uint8
        assert arrays["labels"].tolist() == list(range(7)) and arrays["tokens"].shape == (7, 2)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # checksums
    stream = ArrayImages(path)
    found = np.stack([i.permute(1, 2, 0).numpy() for i in stream.images(range(7))])
    assert np.array_equal(found, PIXELS) and stream.labels.tolist() == list(range(7))


@pytest.mark.parametrize("dtype", ["uint8", "<i8", "<f4"])
def test_members_are_those_of_numpy(tmp_path, dtype):
    rows = PIXELS.astype(dtype)
    finish_npz(fill(tmp_path / "a.npz", rows), {"labels": np.arange(7)})
    np.savez(tmp_path / "b.npz", arr_0=rows, labels=np.arange(7))
    with zipfile.ZipFile(tmp_path / "a.npz") as ours, zipfile.ZipFile(tmp_path / "b.npz") as theirs:
        for name in ("arr_0.npy", "labels.npy"):
            assert ours.read(name) == theirs.read(name)
            assert ours.getinfo(name).CRC == theirs.getinfo(name).CRC


def test_bytes_depend_neither_on_order_nor_on_what_an_interruption_left(tmp_path):
    one, two = (
        fill(tmp_path / "one.npz", PIXELS),
        fill(tmp_path / "two.npz", PIXELS, order=[3, 1, 6, 0, 2, 5, 4]),
    )
    finish_npz(one, {"labels": np.arange(7)})
    finish_npz(two, {"labels": np.zeros(1000)})  # another end, longer than the right one
    assert one.read_bytes() != two.read_bytes()
    with open(two, "ab") as file:
        file.write(b"half of something")
    finish_npz(two, {"labels": np.arange(7)})
    assert one.read_bytes() == two.read_bytes()


def test_a_file_takes_no_room_before_rows_are_written(tmp_path):
    create_npz(tmp_path / "a.npz", "arr_0", (10_000, 32, 32, 3), "uint8")
    assert (tmp_path / "a.npz").stat().st_size > 30_000_000
    assert (tmp_path / "a.npz").stat().st_blocks * 512 < 1_000_000


def test_what_is_no_such_file_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, arr_0=PIXELS)
    path.write_bytes(b"PNG" + path.read_bytes())
    with pytest.raises(ValueError, match="does not begin with a zip member"):
        first_rows(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("arr_0.npy", b"x")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="not begun by this program"):
        first_rows(path)
    fill(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        first_rows(path)


@pytest.mark.slow
def test_more_than_four_gigabytes(tmp_path):
    """50,000 images of 256 x 256 are 9.8 GB, so sizes and offsets need 64 bits; unwritten rows are free."""
    shape = (22_000, 256, 256, 3)
    path = tmp_path / "a.npz"
    create_npz(path, "arr_0", shape, "uint8")
    view = first_rows(path)
    last = np.random.default_rng(0).integers(0, 256, shape[1:], dtype=np.uint8)
    with open(path, "r+b") as file:
        file.seek(view.offset + (shape[0] - 1) * last.nbytes)
        file.write(last.tobytes())
    finish_npz(path, {"labels": np.arange(shape[0])})
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("arr_0.npy").file_size > 2**32 and archive.testzip() is None
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["labels"][-1] == shape[0] - 1
    stream = ArrayImages(path)
    assert stream.count == shape[0]
    image = next(stream.images(range(shape[0] - 1, shape[0])))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), last)
