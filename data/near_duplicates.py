"""Which pictures are nearly the same: copies in other sizes and formats, and bursts of a camera.

A picture is remembered by 128 bits and 8 x 8 colours. Bits say whether a place is brighter than its neighbour, to the
right and below, in grey pictures of 9 x 8 and 8 x 9 pixels (differences of pixels as in "dHash"). All of it is computed
in whole numbers, so that every machine finds the same groups.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.images import PixelRules, decode, read_capture_time

COPY_BITS, COPY_LEVELS = 6, 12  # of 128 bits, and of 255 levels on average over the colours
BURST_SECONDS, BURST_BITS = 10.0, 40
_SIDE = 8
_MARGIN = 1  # levels that are no difference: rounding, and the noise of compression in even areas
_PARTS = 8  # of the bits; two pictures that differ in COPY_BITS agree in two parts at least
_WINDOW = 32  # neighbours that a picture is compared with among those that agree in two parts
_BITS = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)


class Look(NamedTuple):
    """What is remembered of a picture."""

    bits: np.ndarray  # uint16 [8]
    colours: np.ndarray  # uint8 [192]
    taken: float  # seconds, not a number where nobody knows


class Looks(NamedTuple):
    """Those of n pictures."""

    bits: np.ndarray  # uint16 [n, 8]
    colours: np.ndarray  # uint8 [n, 192]
    taken: np.ndarray  # float64 [n]


def look_at(content: bytes) -> Look:
    """Look at an image file, upright. Raises UnreadableImage."""
    picture = decode(content, PixelRules(orientation="upright"), shrink_to=16 * _SIDE).image
    box = Image.Resampling.BOX
    grey = picture.convert("L")
    wide = np.asarray(grey.resize((_SIDE + 1, _SIDE), box), dtype=np.int16)
    tall = np.asarray(grey.resize((_SIDE, _SIDE + 1), box), dtype=np.int16)
    brighter = np.concatenate(
        [np.diff(wide, axis=1).ravel() > _MARGIN, np.diff(tall, axis=0).ravel() > _MARGIN]
    )
    bits = np.packbits(brighter).view(">u2").astype(np.uint16)
    colours = np.asarray(picture.resize((_SIDE, _SIDE), box), dtype=np.uint8).ravel()
    taken = read_capture_time(content)
    return Look(bits, colours, np.nan if taken is None else taken)


def group_alike(looks: Looks) -> np.ndarray:
    """Number int64 [n] of the group of every picture, the same for those that belong together by any chain of pairs.

    A pair are copies if they differ in at most COPY_BITS bits and, on average, COPY_LEVELS levels; or shots of a burst
    if they were taken within BURST_SECONDS and differ in at most BURST_BITS bits. Time and memory grow as n log n: a
    picture is compared with _WINDOW neighbours at most among thousands that agree in the same bits, as blank ones do.
    """
    parents = np.arange(len(looks.bits), dtype=np.int64)
    _join_copies(parents, looks)
    _join_bursts(parents, looks)
    _flatten(parents)
    return parents


def _join_copies(parents: np.ndarray, looks: Looks) -> None:
    mean = looks.colours.mean(axis=1)
    for a, b in combinations(range(_PARTS), 2):
        keys = looks.bits[:, a].astype(np.uint32) << 16 | looks.bits[:, b]
        # Among those of one key, equal bits and then equal colours stand together.
        order = np.lexsort((mean, *(looks.bits[:, part] for part in range(_PARTS)), keys))
        for distance in range(1, _WINDOW + 1):
            places = np.flatnonzero(keys[order[distance:]] == keys[order[:-distance]])
            if not len(places):
                break
            first, second = order[places], order[places + distance]
            # Thousands of equal pictures are thousands of pairs each.
            apart = parents[first] != parents[second]
            first, second = first[apart], second[apart]
            near = _different_bits(looks.bits, first, second) <= COPY_BITS
            first, second = first[near], second[near]
            levels = np.abs(looks.colours[first].astype(np.int16) - looks.colours[second]).mean(axis=1)
            _join(parents, first[levels <= COPY_LEVELS], second[levels <= COPY_LEVELS])


def _join_bursts(parents: np.ndarray, looks: Looks) -> None:
    known = np.flatnonzero(~np.isnan(looks.taken))
    order = known[np.argsort(looks.taken[known], kind="stable")]
    for distance in range(1, _WINDOW + 1):
        places = np.flatnonzero(
            looks.taken[order[distance:]] - looks.taken[order[:-distance]] <= BURST_SECONDS
        )
        if not len(places):
            break
        first, second = order[places], order[places + distance]
        near = _different_bits(looks.bits, first, second) <= BURST_BITS
        _join(parents, first[near], second[near])


def _different_bits(bits: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return _BITS[bits[first] ^ bits[second]].sum(axis=1)


def _join(parents: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Put the groups of all pairs together; the root of a group is its first picture."""
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        a, b = _root(parents, a), _root(parents, b)
        parents[max(a, b)] = min(a, b)
    _flatten(parents)


def _root(parents: np.ndarray, index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]  # shorter for the next one
        index = int(parents[index])
    return index


def _flatten(parents: np.ndarray) -> None:
    """Let every picture point at the root of its group."""
    while not np.array_equal(above := parents[parents], parents):
        parents[:] = above
