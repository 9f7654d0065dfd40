"""Lists of images by other people: CSV, JSON, JSON lines."""

import json
from pathlib import Path

from hypothesis import strategies as st

from storage.image_lists import read_image_list
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import damaged, garbage, values

_TEXTS = ["a.jpg", "", "1", "-1", "3.7", "1e999", "cat", '"', '"a\nb"', "é", "\0", "../../x", " 7 "]
_KEYS = ["path", "file_name", "label", "class", "caption", "text", "other", "Path", "\ufefflabel", ""]
_LONG = ["9" * 5000, "x" * 200_000]
_cells = st.integers(0, len(_TEXTS) + 1).map(
    lambda i: (_TEXTS + _LONG)[i]
)  # none of them in a message of hypothesis
_keys = st.sampled_from(_KEYS)
_ends = {"between": st.sampled_from([",", ";", "\t"]), "end": st.sampled_from(["\n", "\r\n", "\r"])}


def _table(header: list[str], rows: list[list[str]], between: str, end: str) -> bytes:
    return end.join(between.join(row) for row in [header, *rows]).encode()


_plain = st.builds(
    lambda kind, values, between, end: _table(
        ["path", kind], [[f"{i}.jpg", value] for i, value in enumerate(values)], between, end
    ),
    st.sampled_from(["label", "class", "caption"]),
    st.lists(_cells, min_size=1, max_size=4),
    **_ends,
)
_odd = st.builds(
    _table,
    st.lists(_keys, min_size=1, max_size=4),
    st.lists(st.lists(_cells, min_size=1, max_size=4), max_size=4),
    **_ends,
)
_tables = st.one_of(_plain, _plain, _odd)
_records = st.dictionaries(_keys, st.one_of(_cells, values), max_size=4)
_trees = st.one_of(
    st.lists(_records, max_size=3).map(lambda tree: json.dumps(tree).encode()),
    _records.map(lambda tree: json.dumps(tree).encode()),
    st.lists(_records, max_size=3).map(lambda lines: "\n".join(map(json.dumps, lines)).encode()),
)
_SPECIAL = [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000]
_SPECIAL += [b"path,label\n" + b'"' * 999, b"path\n" + b"\r" * 999, b"path\n" + b"x" * 200_000]
_files = st.one_of(_tables, _trees, damaged(_tables), damaged(_trees), garbage, st.sampled_from(_SPECIAL))


def _read(folder: Path, name: str) -> None:
    for row in read_image_list(folder / name).rows:
        assert row.path and "\0" not in row.path and row.label != ""


READER = Reader(
    "image_lists",
    st.builds(
        lambda content, name: Case({name: content}, name),
        _files,
        st.sampled_from(["x.csv", "x.csv", "x.csv", "x.json", "x.jsonl", "x.tsv"]),
    ),
    _read,
)


def test_lists_of_images():
    check(READER)
