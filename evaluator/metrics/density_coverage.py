"""Density and coverage (arXiv:2002.09797): how samples lie in the balls around real images.

A ball reaches to the k-th nearest real neighbour. Recall has balls around samples too, which outliers inflate;
here only real images have balls, and density counts how many of them hold a sample.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Metric, require_features
from evaluator.neighbours import balls_hit, nearest_rows
from evaluator.protocol import ProtocolSettings

NEIGHBOURS = 5


class DensityCoverage(NamedTuple):
    """Mean number of real balls a sample lies in, over k (may exceed 1); share of real balls that hold a sample."""

    density: float
    coverage: float


def density_coverage(
    generated: torch.Tensor,
    reference: torch.Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    device: torch.device | str = "cpu",
) -> DensityCoverage:
    """Density and coverage of features [N, d] against [M, d], distances in float64, strictly inside.

    Raises:
        ValueError: shapes do not fit, values are not finite, or there are not more than k real vectors.
    """
    require_features(generated, reference)
    nearest = nearest_rows(reference, reference, neighbours, same=True, device=device)
    inside, around = balls_hit(reference, nearest.squares[:, -1], generated, device=device)
    density = float(around.double().mean()) / neighbours
    return DensityCoverage(density, float((inside > 0).double().mean()))


class DensityCoverageMetric(Metric):
    """Density and coverage on any kind of features: `density_coverage` or `density_coverage_<space>`."""

    keeps = FeatureStore

    @property
    def values(self) -> tuple[str, ...]:
        space = self.name.removeprefix("density_coverage")
        return (f"density{space}", f"coverage{space}")

    def compute(
        self, own: torch.Tensor, reference: torch.Tensor, *, device: torch.device | str, **_: Any
    ) -> Sequence[float]:
        return density_coverage(own, reference, device=device)

    def impossible(self, count: int, reference_count: int | None, settings: ProtocolSettings) -> str | None:
        """Fewer reference images than neighbours."""
        least = reference_count or count
        if least > NEIGHBOURS:
            return None
        return f"{self.name} needs more than {NEIGHBOURS} reference images, there are {least}"

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        return {f"{self.name}_neighbours": NEIGHBOURS}
