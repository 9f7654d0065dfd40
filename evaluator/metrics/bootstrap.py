"""How far a Frechet distance would move with other samples: the deviation over bootstrap sets.

The mean over such sets is no estimate of the distance. A set drawn with repeats holds about 63 % of the images, so its
covariance has a lower rank and its distance is biased upward. The deviation is not: report distance +- 1.96 deviations.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Metric, require_features
from evaluator.metrics.fid import frechet_distance
from evaluator.moments import Moments, Statistics, statistics_of
from evaluator.protocol import ProtocolSettings

REPEATS, SEED = 20, 2020


def bootstrap_distances(
    generated: torch.Tensor, reference: Statistics, draws: np.ndarray | None = None
) -> list[float]:
    """Distances to a reference of sets drawn from features [N, d] with repeats.

    Args:
        draws: row numbers int [R, N] of the sets; None draws 20 sets by a fixed seed.

    Raises:
        ValueError: values are not finite, or there are fewer than two rows.
    """
    count, distances = len(generated), []
    if draws is None:
        draws = np.random.RandomState(SEED).randint(count, size=(REPEATS, count))
    for chosen in draws:
        times = torch.from_numpy(np.bincount(chosen, minlength=count))
        own = statistics_of(generated, times)
        distances.append(
            frechet_distance(
                reference.mean,
                reference.covariance,
                own.mean,
                own.covariance,
                count1=reference.count,
                count2=int((times > 0).sum()),  # repeats add no rank
            )
        )
    return distances


class BootstrapMetric(Metric):
    """Deviation of a Frechet distance over bootstrap sets of the samples, on any kind of features."""

    in_references = True
    keeps, compares_with = FeatureStore, Moments

    @property
    def values(self) -> tuple[str, ...]:
        return (f"{self.name}_std",)

    def compute(self, own: torch.Tensor, reference: Statistics, **_: Any) -> Sequence[float]:
        require_features(own)
        return [float(np.std(bootstrap_distances(own, reference), ddof=1))]

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        return {f"{self.name}_draws": {"sets": REPEATS, "seed": SEED}}
