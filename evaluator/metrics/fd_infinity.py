"""Frechet distance at infinitely many samples (arXiv:1911.07023): a straight line in 1 / N, read at zero.

The distance of N samples lies above that of many, by about a constant over N. The order in which samples join is drawn
once, by a fixed seed, so that the same samples give the same number.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Metric, require_features
from evaluator.metrics.fid import frechet_distance
from evaluator.moments import Moments, Statistics
from evaluator.protocol import ProtocolSettings

SIZES, SMALLEST, SEED = 15, 5000, 2020


class Extrapolation(NamedTuple):
    """The line a + b / N through distances at several N: intercept a, slope b, and the points."""

    intercept: float
    slope: float
    counts: list[int]
    distances: list[float]


def fd_infinity(
    generated: torch.Tensor, reference: Statistics, *, order: Sequence[int] | np.ndarray | None = None
) -> Extrapolation:
    """Extrapolate the distance of features [N, d] to a reference.

    Args:
        order: of the samples, int [N]; None draws a permutation by a fixed seed. Never the order of classes.

    Raises:
        ValueError: there are fewer than 20 samples, or values are not finite.
    """
    count = len(generated)
    if count < 20:
        raise ValueError(f"a line needs at least 20 samples, got {count}")
    order = np.random.RandomState(SEED).permutation(count) if order is None else np.asarray(order)
    sizes = np.linspace(min(SMALLEST, count / 10), count, SIZES).astype(int).tolist()
    moments, done, distances = Moments(generated.shape[1]), 0, []
    for size in sizes:  # every set holds the one before, so that each image is added once
        for rows in torch.from_numpy(order[done:size].astype(np.int64)).split(4096):
            moments.update(generated[rows])
        done = size
        distances.append(
            frechet_distance(
                reference.mean,
                reference.covariance,
                moments.mean,
                moments.covariance,
                count1=reference.count,
                count2=size,
            )
        )
    slope, intercept = np.polyfit(1.0 / np.array(sizes), distances, 1)
    return Extrapolation(float(intercept), float(slope), sizes, distances)


class FrechetInfinityMetric(Metric):
    """Frechet distance at infinity, on any kind of features."""

    in_references = True
    keeps, compares_with = FeatureStore, Moments

    def compute(self, own: torch.Tensor, reference: Statistics, **_: Any) -> Sequence[float]:
        require_features(own)
        return [fd_infinity(own, reference).intercept]

    def impossible(self, count: int, reference_count: int | None, settings: ProtocolSettings) -> str | None:
        """Too few images for a line."""
        if count >= 20:
            return super().impossible(count, reference_count, settings)
        return f"{self.name} needs at least 20 samples, there are {count}"

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        smallest = int(min(SMALLEST, count / 10))
        return {f"{self.name}_line": {"sizes": SIZES, "from": smallest, "to": count, "order_seed": SEED}}
