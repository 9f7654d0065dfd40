"""Damage to bytes, as `hypothesis` strategies: few draws per example, so that a hundred thousand take minutes."""

import random
import struct
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# Numbers that break sums, products, signs and shifts.
NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    511,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**40,
    2**53,
    2**60,
]
NUMBERS += [2**62, 2**63 - 1, -(2**63), 2**64 - 1]
# From lists alone: hypothesis also draws constants of the modules that happen to be loaded, and a test that is run with
# others would see other examples than alone.
numbers = st.sampled_from([*NUMBERS, *range(-5, 301)])
_CHARACTERS = [
    *"ab0 1.-_:{}[]$'\"\\/,#&*!|>%@`~=?\n\t",
    "\0",
    "\x7f",
    "é",
    "\u2028",
    "中",
    "\udcff",
    "\U0001f600",
]


def texts(longest: int) -> SearchStrategy[str]:
    """Any text."""
    return st.lists(st.sampled_from(_CHARACTERS), max_size=longest).map("".join)


def bits(longest: int) -> SearchStrategy[bytes]:
    """Any bytes."""
    return st.lists(st.sampled_from(range(256)), max_size=longest).map(bytes)


_KINDS = ("flip", "number", "cut", "delete", "repeat", "insert", "swap", "zero")


def damage(content: bytes, edits: Sequence[tuple[str, float, int, bytes]]) -> bytes:
    """Apply edits (kind, place in [0, 1], number, bytes) one after the other."""
    data = bytearray(content)
    for kind, place, number, extra in edits:
        at = int(place * len(data))
        span = abs(number) % 64 + 1
        if kind == "flip" and at < len(data):
            data[at] ^= number % 255 + 1
        elif kind == "number":
            size = 8 if number % 2 else 4
            data[at : at + size] = struct.pack("<Q", number % 2**64)[:size]
        elif kind == "cut":
            del data[at:]
        elif kind == "delete":
            del data[at : at + span]
        elif kind == "repeat":
            data[at:at] = data[at : at + span] * (abs(number) % 3 + 1)
        elif kind == "insert":
            data[at:at] = extra
        elif kind == "swap":
            data[at : at + 2 * span] = data[at + span : at + 2 * span] + data[at : at + span]
        elif kind == "zero":
            data[at : at + span] = bytes(len(data[at : at + span]))
    return bytes(data)


def random_edits(source: random.Random) -> list[tuple[str, float, int, bytes]]:
    """One to three edits, in a hundredth of the time that a strategy takes."""
    return [
        (
            source.choice(_KINDS),
            source.random(),
            source.choice(NUMBERS),
            source.randbytes(source.randrange(9)),
        )
        for _ in range(source.randint(1, 3))
    ]


_edit = st.tuples(
    st.sampled_from(_KINDS),
    st.sampled_from([i / 1024 for i in range(1025)]),
    st.sampled_from(NUMBERS),
    bits(8),
)
edits = st.lists(_edit, max_size=4)


def damaged(contents: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Whole files, every third about, and the same ones damaged in up to four places."""
    return st.builds(damage, contents, st.one_of(st.just([]), edits, edits))


def one_of_files(*contents: bytes) -> SearchStrategy[bytes]:
    """One of a few files."""
    return st.sampled_from(contents)


garbage = bits(300)

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.sampled_from([0.5, 1e300, float("inf"), float("nan"), 3.7, "", "7", "é\ud800"]),
)
# Values of JSON or YAML of any shape.
values = st.recursive(
    _scalars | texts(5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts(4), inner, max_size=3),
    max_leaves=5,
)
