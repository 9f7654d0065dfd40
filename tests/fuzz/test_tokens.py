"""Token files, and lines of JSON of other programs."""

import json
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from data.source import CorruptSample
from data.token_lines import TokenLines
from data.token_memmap import TokenMemmap
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import NUMBERS, damage, damaged, edits, garbage, numbers, values

_HEADER = {
    "num_images": 3,
    "crops": 2,
    "num_tokens": 4,
    "codebook_size": 48,
    "tokenizer": "x",
    "weight_hash": "0" * 16,
    "image_size": 16,
    "class_names": ["a", "b"],
    "source": "",
}
_MAGIC, _PAGE = b"TOKENS\x00\x01", 4096


@cache
def _rows(label: int, token: int) -> bytes:
    labels = np.array([0, label, 1], "<i8").tobytes()
    return labels + bytes(_PAGE - len(labels)) + np.full((3, 2, 4), token, "<u2").tobytes()


def _file(
    changes: dict, lost: list, text: bytes | None, fits: bool, missing: int, label: int, token: int
) -> bytes:
    """A token file with another header, whose checksum fits."""
    header = {k: v for k, v in {**_HEADER, **changes}.items() if k not in lost}
    text = json.dumps(header).encode() if text is None else text
    start = struct.pack("<8sQQQ", _MAGIC, len(text), zlib.crc32(text) if fits else 7, missing % 2**64) + text
    return start + bytes(-len(start) % _PAGE) + _rows(label, token)


_files = st.builds(
    _file,
    st.just({})
    | st.just({})
    | st.dictionaries(st.sampled_from(sorted(_HEADER)), numbers | values, max_size=1),
    st.just([]) | st.just([]) | st.lists(st.sampled_from(sorted(_HEADER)), max_size=1),
    st.none()
    | st.none()
    | st.none()
    | st.sampled_from([b"", b"[" * 5000, b"[]", b"null", b'{"num_images": ' + b"9" * 5000 + b"}"]),
    st.just(True) | st.booleans(),
    st.just(0) | st.sampled_from(NUMBERS),
    st.sampled_from([1, 1, 1, -1, 2, 2**62]),
    st.sampled_from([7, 7, 48, 65535]),
)


def _read_file(folder: Path, _: object) -> None:
    source = TokenMemmap(path=folder / "x.tokens")
    rng = [np.random.default_rng(0)] * len(source)
    source.load_many(range(len(source)), rng)
    source.all_crops(0, len(source))


FILE = Reader(
    "token_file",
    st.builds(
        lambda content, cuts: Case({"x.tokens": damage(content, cuts)}),
        _files | _files | _files | garbage,
        st.just([]) | st.just([]) | edits,
    ),
    _read_file,
    errors=(ValueError, OSError, CorruptSample),
)

_record = st.fixed_dictionaries(
    {
        "class_id": st.sampled_from(range(0, 3)),
        "tokens": st.lists(st.sampled_from(range(0, 48)), min_size=4, max_size=4),
    }
)
_odd_record = st.one_of(
    st.builds(lambda r, v: {**r, "class_id": v}, _record, values),
    st.builds(lambda r, v: {**r, "tokens": v}, _record, values),
    st.builds(lambda r, v: {**r, "tokens": [v, 1, 2, 3]}, _record, values),
    values,
)
_odd_lines = [
    b"[" * 5000,
    b"",
    b"{}",
    b'{"class_id": 1, "tokens": [' + b"1," * 3000 + b"1]}",
    b"\xff",
    b'{"class_id": 01}',
]
_odd_lines += [
    b'{"class_id": ' + b"9" * 5000 + b', "tokens": [1]}',
    b'{"class_id": 1, "class_id": 2, "tokens": [1, 2, 3, 4]}',
]
_line = st.one_of(
    *[_record.map(lambda r: json.dumps(r).encode())] * 4,
    _odd_record.map(lambda r: json.dumps(r).encode()),
    st.sampled_from(_odd_lines),
)
_good_lines = st.lists(_record.map(lambda r: json.dumps(r).encode()), min_size=1, max_size=6)
_lines = st.one_of(_good_lines, _good_lines, st.lists(_line, max_size=6)).map(lambda lines: b"\n".join(lines))


def _read_lines(folder: Path, group: int) -> None:
    lines = TokenLines(folder / "x.jsonl", codebook_size=48, num_classes=3)
    count, found = lines.count(), 0
    for labels, tokens in lines.blocks(group=group):
        assert tokens.shape == (len(labels), lines.num_tokens)
        assert labels.min() >= 0 and labels.max() < 3 and tokens.min() >= 0 and tokens.max() < 48
        found += len(labels)
    assert found == count
    assert lines.classes(0, count + 3)


LINES = Reader(
    "token_lines",
    st.builds(
        lambda content, group: Case({"x.jsonl": content}, group),
        damaged(_lines) | garbage,
        st.sampled_from([1, 1, 2]),
    ),
    _read_lines,
)


def test_token_files():
    check(FILE)


def test_lines_of_tokens():
    check(LINES)
