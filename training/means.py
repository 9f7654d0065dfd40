"""Means over held-out examples of all processes."""

from collections.abc import Iterable, Mapping

import torch

from common import distributed
from common.console import warn

SHOWN = 3  # names of unreadable examples


class HeldOutMeans:
    """Means of numbers that batches of different sizes have; the examples of a batch that cannot be read are named.

    Every process adds its share, maybe none, then all call `result`.
    """

    def __init__(self, *names: str) -> None:
        self.sums = dict.fromkeys(names, 0.0)
        self.count, self.skipped = 0, []

    def skip(self, names: Iterable[str]) -> None:
        """Note examples that cannot be read."""
        self.skipped += names

    def add(self, means: Mapping[str, torch.Tensor], count: int) -> None:
        """Add the means of a batch of `count` examples; the mean of no examples is not a number, and not looked at."""
        self.count += count
        for name in self.sums if count else ():
            self.sums[name] = self.sums[name] + means[name].detach().cpu().double() * count

    def result(self) -> dict[str, float]:
        """The means, none if no example can be read, and `images`, the number of examples; warns of skipped ones."""
        every = distributed.gather_objects((self.sums, self.count, self.skipped))
        skipped = [name for _, _, names in every for name in names]
        if skipped:
            more = ", ..." if len(skipped) > SHOWN else ""
            warn(f"evaluation skipped {len(skipped)} examples: {', '.join(skipped[:SHOWN])}{more}")
        count = sum(n for _, n, _ in every)
        sums = {name: sum(float(s[name]) for s, _, _ in every) for name in self.sums if count}
        return {name: value / count for name, value in sums.items()} | {"images": float(count)}
