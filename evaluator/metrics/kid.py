"""Kernel Inception Distance (arXiv:1801.01401): unbiased squared MMD of features under a polynomial kernel."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Metric
from evaluator.protocol import ProtocolSettings

ROWS = 2048  # rows of a kernel matrix held at a time


class KernelDistance(NamedTuple):
    """Mean and population standard deviation of the squared MMD over the subsets; may be slightly negative."""

    mean: float
    std: float


def kernel_distance(
    generated: torch.Tensor,
    reference: torch.Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> KernelDistance:
    """KID of features [N, d] and [M, d] with the subsets that torch-fidelity draws.

    The kernel is (x.y / d + 1)^3, in float64 on the CPU (the tools use float32, a difference of about 4e-6 relative).

    Args:
        subset_size: vectors per subset and set, drawn without replacement, from 2 to min(N, M).

    Raises:
        ValueError: shapes do not fit, values are not finite, or the subset size is out of range.
    """
    generated, reference = generated.detach().cpu(), reference.detach().cpu()
    if generated.ndim != 2 or reference.ndim != 2 or generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features of shapes {tuple(generated.shape)} and {tuple(reference.shape)}, expected [N, d] and [M, d]"
        )
    most = min(len(generated), len(reference))
    if not 2 <= subset_size <= most or subsets < 1:
        raise ValueError(
            f"subsets={subsets} must be at least 1 and subset_size={subset_size} from 2 to {most}, the smaller set"
        )
    if not (torch.isfinite(generated).all() and torch.isfinite(reference).all()):
        raise ValueError("features hold values that are not finite")
    factor = 1.0 / generated.shape[1]
    draws, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        x, y = (  # the generated set draws first
            features[torch.from_numpy(draws.choice(len(features), subset_size, replace=False))].double()
            for features in (generated, reference)
        )
        # Unbiased: diagonals are dropped within a set; between the sets every pair counts.
        within = sum(
            _kernel_sum(z, z, factor) - float((factor * z.square().sum(dim=1) + 1.0).pow(3).sum())
            for z in (x, y)
        )
        across = _kernel_sum(x, y, factor)
        values.append(within / (subset_size * (subset_size - 1)) - 2.0 * across / subset_size**2)
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _kernel_sum(x: torch.Tensor, y: torch.Tensor, factor: float) -> float:
    return sum(float((rows @ y.T).mul_(factor).add_(1.0).pow_(3).sum()) for rows in x.split(ROWS))


class KernelMetric(Metric):
    """Kernel distance of any kind of features, with the subsets of the protocol, no larger than the smaller set."""

    spread = True
    keeps = FeatureStore

    def compute(
        self, own: torch.Tensor, reference: torch.Tensor, *, settings: ProtocolSettings, **_: Any
    ) -> Sequence[float]:
        size = min(settings.kid_subset_size, len(own), len(reference))
        return kernel_distance(own, reference, subsets=settings.kid_subsets, subset_size=size)

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        return {f"{self.name}_subset_size": min(settings.kid_subset_size, count, reference_count)}
