"""Tar shards: headers, sizes, notes on names, links, labels; and indexes that came with a shard."""

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from data.tar_index import Notes, make_index, read_published
from storage.tar_members import TarReader
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import NUMBERS, damage, edits, garbage

_NAMES = [
    "a.jpg",
    "a.cls",
    "a.json",
    "a.txt",
    "b.PNG",
    "b.cls",
    "dir/c.jpg",
    "../c.jpg",
    "/etc/d.jpg",
    "img_0.5.jpg",
]
_NAMES += [
    ".hidden.jpg",
    ".h/e.jpg",
    "./a.jpg",
    "é.jpg",
    "x" * 300 + ".jpg",
    "",
    "/",
    "..",
    "a/../../b.jpg",
    "\udcff.jpg",
]
_CONTENTS = [
    b"",
    b"7",
    b"3.7",
    b"1_0",
    b'{"label": 7}',
    b'{"label": [1]}',
    b"[" * 5000,
    b'{"original_width": 1e999}',
]
_CONTENTS += [
    b"9" * 3000,
    b"\xff\xfe",
    b"pixels" * 100,
    b"-1",
    b"true",
    b"null",
    b'{"cls": "7", "label": null}',
]
_KINDS = [tarfile.REGTYPE] * 6 + [
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    b"S",
    b"7",
    b"\0",
    b"Q",
]
_RECORDS = [
    {},
    {},
    {},
    {"path": "p.jpg"},
    {"path": "../p.jpg"},
    {"size": "10"},
    {"size": "-1"},
    {"size": str(2**60)},
]
_RECORDS += [
    {"size": "x"},
    {"GNU.sparse.name": "s.jpg"},
    {"path": "y" * 5000 + ".jpg"},
    {"hdrcharset": "BINARY"},
    {"size": ""},
]


def _member(name: str, content: bytes, kind: bytes, records: dict, size: int | None, fits: bool) -> bytes:
    """One entry; its header may declare another size, with a checksum that fits."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.pax_headers = kind, len(content), "../marker", dict(records)
    raw = bytearray(
        info.tobuf(tarfile.PAX_FORMAT if records else tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    )
    if size is not None:
        head = len(raw) - 512
        field = (
            b"\x80" + (size % 2**88).to_bytes(11, "big") if size > 8**11 or size < 0 else b"%011o\0" % size
        )
        raw[head + 124 : head + 136] = field
        if fits:
            raw[head + 148 : head + 156] = b" " * 8
            raw[head + 148 : head + 156] = b"%06o\0 " % sum(raw[head : head + 512])
    return bytes(raw) + content + bytes(-len(content) % 512)


_members = st.builds(
    _member,
    st.sampled_from(_NAMES),
    st.sampled_from(_CONTENTS),
    st.sampled_from(_KINDS),
    st.sampled_from(_RECORDS),
    st.none() | st.none() | st.none() | st.none() | st.sampled_from(NUMBERS),
    st.booleans() | st.just(True),
)
_PLAIN = [
    _member(name, content, tarfile.REGTYPE, {}, None, True)
    for name, content in [("a.jpg", b"x"), ("a.cls", b"3")]
]


def _tar(members: list[bytes], edits: list, end: int, note: int | None) -> bytes:
    """Members, damage, blocks of zeros at the end, and perhaps a long name that announces many bytes."""
    content = b"".join(members)
    if note is not None:
        content = _member("././@LongLink", b"z" * 20, b"L", {}, note, True) + content
    return damage(content, edits) + bytes(512 * end)


_tars = st.builds(
    _tar,
    st.one_of(
        st.lists(_members, max_size=4).map(lambda more: [*_PLAIN, *more]), st.lists(_members, max_size=5)
    ),
    st.one_of(st.just([]), st.just([]), edits),
    st.sampled_from([2, 2, 2, 2, 0, 1]),
    st.none() | st.none() | st.none() | st.sampled_from([20, *NUMBERS]),
)


def _read(folder: Path, label_key: str | None) -> None:
    path = folder / "x.tar"
    index = make_index(path, label_key=label_key)
    size = path.stat().st_size
    Notes.from_tree(json.loads(str(index.notes)))
    assert ((index.offsets >= 0) & (index.sizes >= 0) & (index.offsets + index.sizes <= size)).all()
    with TarReader(path) as tar:
        for offset, count in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
            assert len(tar.read(offset, count)) == count


TAR = Reader(
    "tar",
    st.builds(
        lambda content, key: Case({"x.tar": content}, key),
        st.one_of(_tars, _tars, _tars, garbage),
        st.sampled_from([None, "label"]),
    ),
    _read,
)
SIZE = 10_240


@cache
def _good() -> dict[str, np.ndarray]:
    ints = {name: np.array([512, 1536]) for name in ("offsets", "sizes", "labels", "caption_offsets")}
    ints |= {name: np.array([5, 6], np.int32) for name in ("caption_sizes", "heights", "widths")}
    stamp = np.array(json.dumps([3, SIZE, "", None]))
    return {"stamp": stamp, "names": np.array([b"a.jpg", b"b.jpg"]), **ints, "notes": np.array("{}")}


_ODD = [
    np.array([-1, 5]),
    np.array([2**62, 1]),
    np.array([1]),
    np.array(3),
    np.array(["x", "y"]),
    np.eye(2),
    np.array([0.5, 1]),
]
_ODD += [
    np.array("[" * 20_000),
    np.array('{"left_out": {"r": [1]}}'),
    np.array("null"),
    np.zeros(1 << 20),
    np.array([True, False]),
]


def _index(name: str, odd: np.ndarray | None, edits: list, compressed: bool) -> Case:
    stream = io.BytesIO()
    arrays = dict(_good())
    if odd is not None:
        arrays[name] = odd
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return Case({}, damage(stream.getvalue(), edits))


def _read_index(_: Path, content: bytes) -> None:
    index = read_published(content, SIZE, None)
    if index is None:
        raise ValueError("it is made anew")
    ends = index.offsets + index.sizes
    assert (index.offsets >= 0).all() and (index.sizes >= 0).all() and (ends <= SIZE).all()
    assert len({len(a) for a in vars(index).values() if a.ndim}) == 1
    Notes.from_tree(json.loads(str(index.notes)))


INDEX = Reader(
    "published_index",
    st.builds(
        _index,
        st.sampled_from(list(_good())),
        st.none() | st.sampled_from(_ODD),
        st.just([]) | edits,
        st.booleans(),
    ),
    _read_index,
    named="made anew",
)


def test_shards():
    check(TAR)


def test_published_indexes():
    check(INDEX)
