"""Kernel Inception Distance (arXiv:1801.01401): unbiased squared MMD of features under a polynomial kernel."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Metric, require_features
from evaluator.protocol import ProtocolSettings

ROWS = 2048  # rows of a kernel matrix held at a time


class KernelDistance(NamedTuple):
    """Mean and population standard deviation of the squared MMD over the subsets; the mean may be slightly negative."""

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
    require_features(generated, reference)
    most = min(len(generated), len(reference))
    if not 2 <= subset_size <= most or subsets < 1:
        raise ValueError(
            f"subsets={subsets} must be at least 1 and subset_size={subset_size} from 2 to {most}, the smaller set"
        )
    draws, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        x, y = (  # the generated set draws first
            features[torch.from_numpy(draws.choice(len(features), subset_size, replace=False))]
            for features in (generated, reference)
        )
        values.append(squared_mmd(x, y))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def squared_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased squared MMD of features [n, d] and [m, d] on the CPU, n and m at least 2; see `kernel_distance`."""
    x, y, factor = x.double(), y.double(), 1.0 / x.shape[1]
    # Unbiased: diagonals are dropped within a set; between the sets every pair counts.
    within = [
        (_kernel_sum(z, z, factor) - float((factor * z.square().sum(dim=1) + 1.0).pow(3).sum()))
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(within) - 2.0 * _kernel_sum(x, y, factor) / (len(x) * len(y))


def _kernel_sum(x: torch.Tensor, y: torch.Tensor, factor: float) -> float:
    return sum(float((rows @ y.T).mul_(factor).add_(1.0).pow_(3).sum()) for rows in x.split(ROWS))


class KernelMetric(Metric):
    """Kernel distance of any kind of features, with the subsets of the protocol.

    Of fewer images than a subset takes, all subsets would be the same images in another order, and their spread
    nothing but rounding: then it is one value of all images, without a spread.
    """

    spread = True
    keeps = FeatureStore

    def compute(
        self, own: torch.Tensor, reference: torch.Tensor, *, settings: ProtocolSettings, **_: Any
    ) -> Sequence[float]:
        if _has_subsets(len(own), len(reference), settings):
            size = settings.kid_subset_size
            return kernel_distance(own, reference, subsets=settings.kid_subsets, subset_size=size)
        require_features(own, reference)
        return [squared_mmd(own, reference)]

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        if _has_subsets(count, reference_count, settings):
            return {f"{self.name}_subset_size": settings.kid_subset_size}
        return {
            f"{self.name}_subset_size": f"all images, without a spread: not more than {settings.kid_subset_size}"
        }


def _has_subsets(count: int, reference_count: int, settings: ProtocolSettings) -> bool:
    size = settings.kid_subset_size
    return min(count, reference_count) >= size and max(count, reference_count) > size
