"""MATLAB files as scipy writes them, packed and not; damaged ones."""

import io

import numpy as np
import pytest
from scipy.io import savemat

from storage.mat_file import read_table

ROWS = [(1.0, "n01440764", "tench, Tinca tinca"), (2.0, "n01443537", "Ä fish"), (300.0, "n1", "")]


def mat(packed: bool = True) -> bytes:
    file = io.BytesIO()
    kinds = [("ID", "O"), ("WNID", "O"), ("words", "O"), ("children", "O")]
    rows = [(*row, np.arange(5.0)) for row in ROWS]
    tables = {"other": np.eye(3), "synsets": np.array(rows, dtype=kinds).reshape(-1, 1)}
    savemat(file, tables, do_compression=packed)
    return file.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_texts_and_numbers(packed):
    found = read_table(mat(packed), "synsets", ["WNID", "ID", "words", "children"])
    assert [(r["ID"], r["WNID"], r.get("words", "")) for r in found] == ROWS
    assert all(r["children"] == 0.0 for r in found)  # the first number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB file of level 5"),
        (b"x" * 500, "not a MATLAB file of level 5"),
        (mat(False)[:-40], "cut short"),
        (mat(True)[:-40], "cut short"),
        (mat(True)[:300] + bytes([7]) * 20 + mat(True)[320:], "damaged|cut short"),
        (mat()[:128], "it holds no synsets"),
    ],
)
def test_damaged_files(content, message):
    with pytest.raises(ValueError, match=message):
        read_table(content, "synsets", ["WNID"])


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match="it holds no table"):
        read_table(mat(), "table", ["WNID"])
    with pytest.raises(ValueError, match="it has no field wnid, but ID, WNID, words, children"):
        read_table(mat(), "synsets", ["wnid"])
    with pytest.raises(ValueError, match="other is no struct array"):
        read_table(mat(), "other", ["WNID"])
