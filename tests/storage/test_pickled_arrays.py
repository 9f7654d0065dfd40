import os
import pickle

import numpy as np
import pytest

from storage.pickled_arrays import read_pickled_arrays

ARRAYS = {
    "plain": np.random.default_rng(0).standard_normal((3, 4)),
    "fortran": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    "big": np.arange(5, dtype=">i4"),
    "strided": np.arange(20.0)[::3],
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_come_back(tmp_path, protocol):
    given = {"a.npz": ARRAYS, "count": 5, "scale": np.float64(2.5), "name": "x"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(given, protocol))
    found = read_pickled_arrays(tmp_path / "a.pkl")
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(found["a.npz"][key], array)
        assert found["a.npz"][key].dtype == array.dtype
    assert (found["count"], float(found["scale"]), found["name"]) == (5, 2.5, "x")


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_code_is_refused_and_never_run(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "a.pkl"
    for value, reason in (
        ({"a": Call(os.system, f"touch {mark}")}, "names posix.system|names nt.system"),
        ({"a": Call(eval, f"open({str(mark)!r}, 'w')")}, "eval"),
        ({"a": Call(bytearray, 1 << 40)}, "bytearray"),
        ({"a": np.array([{}, open], dtype=object)}, "names"),
        ({"a": np.zeros(2, "M8[s]")}, "has the type 'M8'"),
        ({1: np.zeros(2)}, "keys are not all texts"),
        ([np.zeros(2)], "holds a list"),
        ({"a": {1, 2}}, "set"),
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(ValueError, match=f"(?s)a.pkl cannot be read: .*({reason})"):
            read_pickled_arrays(path)
    assert not mark.exists()


def test_damage_ends_in_one_line_and_takes_no_memory(tmp_path):
    whole = pickle.dumps({"a": np.arange(6.0)}, 4)
    path, draws = tmp_path / "a.pkl", np.random.default_rng(0)
    cases = [b"", whole[: len(whole) // 2], b"\x80\x04" + b"r\xff\xff\xff\x7f" * 2 + b"."]
    cases += [b"\x80\x02]r\xff\xff\xff\x7f.", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00."]
    for _ in range(300):
        damaged = bytearray(whole)
        for place in draws.integers(0, len(whole), 2):
            damaged[place] = draws.integers(256)
        cases.append(bytes(damaged))
    refused = 0
    for content in cases:
        path.write_bytes(content)
        try:
            read_pickled_arrays(path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
    with pytest.raises(FileNotFoundError):
        read_pickled_arrays(tmp_path / "absent.pkl")
