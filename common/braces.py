"""Brace patterns such as `shard-{000..127}.tar`, written out."""

import math
import re

from braceexpand import UnbalancedBracesError, braceexpand

MOST = 1_000_000  # files that a pattern may name
_DEEPEST = 50
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}")


def expand_braces(pattern: str) -> list[str]:
    """All texts that a pattern stands for; raises ValueError if its braces do not match, or it names too many."""
    ranges = (
        [[int(n or 1) for n in found] for found in _RANGE.findall(pattern)] if len(pattern) < 10_000 else None
    )
    if ranges is None or pattern.count("{") > _DEEPEST:
        raise ValueError(f"{pattern[:100]!r}... is no usable brace pattern")
    # Too many for braces inside of braces, which nobody writes for so many files.
    lists = (group.count(",") + 1 for group in pattern.split("{")[1:])
    count = math.prod(abs(last - first) // (abs(step) or 1) + 1 for first, last, step in ranges) * math.prod(
        lists
    )
    if count > MOST:
        raise ValueError(f"{pattern!r} names {count} files, at most {MOST} are possible")
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise ValueError(f"{pattern!r}: braces do not match") from error
