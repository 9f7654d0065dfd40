"""Which original belongs to which sample: by their names, as people number and rename files.

Sorted names are no order to rely on: `r_10.png` comes before `r_2.png` and after `r_002.png`, and `r_1_rec.png` and
`r_10_rec.png` change places without their ending.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Keys = list[str]


@dataclass(frozen=True)
class Pairing:
    """The original of every sample, int64 [N], and by what they were paired."""

    originals: np.ndarray
    rule: str


def pair_by_name(samples: Sequence[str], originals: Sequence[str], *, some: bool = False) -> Pairing:
    """Pair names by the strictest of `FORMS` in which every name has exactly one partner.

    Args:
        some: originals without a sample may be left over.

    Raises:
        ValueError: in no form they match; the message names the first sample without an original.
    """
    best: tuple[int, str] | None = None
    for rule, form in FORMS.items():
        own, theirs = form(samples), form(originals)
        places = {key: place for place, key in enumerate(theirs)}
        unique = len(places) == len(theirs) and len(set(own)) == len(own)
        matched = sum(key in places for key in own)
        if unique and matched == len(own) and (some or len(own) == len(theirs)):
            return Pairing(np.array([places[key] for key in own], np.int64), rule)
        if best is None or matched > best[0]:
            best = (matched, _mismatch(samples, own, originals, theirs))
    raise ValueError(
        f"samples and originals cannot be paired by name: {best[1]}; rename the files, or set pairs=order to pair them"
        " as they are sorted"
    )


def _mismatch(samples: Sequence[str], own: Keys, originals: Sequence[str], theirs: Keys) -> str:
    for what, names, keys in (("sample", samples, own), ("original", originals, theirs)):
        known: dict[str, str] = {}
        for name, key in zip(names, keys, strict=True):
            if key in known:
                return f"the {what}s {known[key]!r} and {name!r} have one name"
            known[key] = name
    sample, original = _first_alone(samples, own, theirs), _first_alone(originals, theirs, own)
    if sample is None:
        return f"no sample belongs to the original {original!r}"
    hint = "" if original is None else f" (the first original without a sample is {original!r})"
    return f"no original belongs to the sample {sample!r}{hint}"


def _first_alone(names: Sequence[str], keys: Keys, others: Keys) -> str | None:
    partners = set(others)
    return next((name for name, key in zip(names, keys, strict=True) if key not in partners), None)


def _paths(names: Sequence[str]) -> Keys:
    # File systems write accents in one or in two characters. The name of a shard is no part of the name of an image.
    return [re.sub(r"^[^/]*\.tar/", "", unicodedata.normalize("NFC", name)) for name in names]


def _stems(names: Sequence[str]) -> Keys:
    return [os.path.splitext(path)[0] for path in _paths(names)]


def _numbered(names: Sequence[str]) -> Keys:
    return [re.sub("[0-9]+", lambda digits: str(int(digits[0])), stem) for stem in _stems(names)]


def _files(names: Sequence[str]) -> Keys:
    return [os.path.basename(stem) for stem in _numbered(names)]


def _flat(names: Sequence[str]) -> Keys:
    return [stem.replace("/", "_") for stem in _numbered(names)]


def _bare(keys: Keys) -> Keys:
    """Without what all names begin and end with, whole words and numbers only."""
    if len(set(keys)) < 2:
        return keys
    first = _common(keys)
    keys = [key[first:] for key in keys]
    last = _common([key[::-1] for key in keys])
    return [key[: len(key) - last] for key in keys]


def _common(keys: Keys) -> int:
    """Length of the common beginning that ends with a word."""
    length = len(os.path.commonprefix(keys))
    while length:
        letter, following = keys[0][length - 1], [key[length : length + 1] for key in keys]
        if not letter.isalnum() or (letter.isalpha() and all(map(str.isdigit, following))):
            break
        length -= 1
    return length


# From strict to loose.
FORMS: dict[str, Callable[[Sequence[str]], Keys]] = {
    "path": _paths,
    "path without suffix": _stems,
    "path without suffix and leading zeros": _numbered,
    "file name without suffix and leading zeros": _files,
    "path joined by _, without suffix and leading zeros": _flat,
    "path without common beginning and ending, suffix and leading zeros": lambda names: _bare(
        _numbered(names)
    ),
    "file name without common beginning and ending, suffix and leading zeros": lambda n: _bare(_files(n)),
}
