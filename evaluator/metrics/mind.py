"""MIND (arXiv:2605.06797): squared sliced Wasserstein-2 distance of two sets of features, for few images.

    3 d * mean over directions u of mean_j (sort(u . x)_j - sort(u . y)_j)^2

Directions alone scatter it by some percent: their number and the seed belong to the number.
"""

from collections.abc import Sequence
from typing import Any

import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Metric, require_features
from evaluator.protocol import ProtocolSettings

DIRECTIONS, SEED = 1000, 2020
_VALUES = 1 << 24  # projections of each set held at a time, float64: bounds the memory of large sets
_ROWS = 4096  # rows widened to float64 at a time


def mind(
    generated: torch.Tensor, reference: torch.Tensor, *, directions: int = DIRECTIONS, seed: int = SEED
) -> float:
    """MIND of features [N, d] and [M, d], with the draws of the published tools and sums in float64.

    If sizes differ, the larger set is cut to the size of the smaller one, by a permutation of the same seed.

    Raises:
        ValueError: shapes do not fit, values are not finite, or there is nothing to compare.
    """
    require_features(generated, reference)
    if directions < 1 or not min(len(generated), len(reference)):
        raise ValueError(
            f"MIND of {len(generated)} and {len(reference)} vectors along {directions} directions"
        )
    draws = torch.Generator().manual_seed(seed)
    count, most = sorted((len(generated), len(reference)))
    kept = torch.randperm(most, generator=draws)[:count] if count < most else None
    raw = torch.randn(directions, generated.shape[1], generator=draws)  # float32, as the tools draw them
    units = (raw / raw.norm(dim=1, keepdim=True)).double().T  # [d, K]
    total = 0.0
    for part in units.split(max(1, _VALUES // count), dim=1):
        x, y = (
            _projected(features, kept if len(features) == most else None, part).sort(dim=0).values
            for features in (generated, reference)
        )
        total += float((x - y).square().sum())
    return 3.0 * generated.shape[1] * total / (directions * count)


def _projected(features: torch.Tensor, kept: torch.Tensor | None, units: torch.Tensor) -> torch.Tensor:
    """Projections [n, K] of all rows, or of those in `kept`, float64."""
    places = torch.arange(len(features)) if kept is None else kept
    return torch.cat([features[rows].detach().cpu().double() @ units for rows in places.split(_ROWS)])


class MindMetric(Metric):
    """MIND on any kind of features."""

    counted = True
    keeps = FeatureStore

    def compute(self, own: torch.Tensor, reference: torch.Tensor, **_: Any) -> Sequence[float]:
        return [mind(own, reference)]

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        compared = min(count, reference_count)
        return {f"{self.name}_draws": {"directions": DIRECTIONS, "seed": SEED, "images": compared}}
