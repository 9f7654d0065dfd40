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
    degree: int = 3,
    gamma: float | None = None,
    offset: float = 1.0,
    seed: int = 2020,
) -> KernelDistance:
    """KID with the subsets torch-fidelity draws: from the generated set first, then from the reference.

    The kernel is (gamma x.y + offset)^degree, in float64 on the CPU (the tools use float32, a difference of about
    4e-6 relative).

    Args:
        generated: [N, d].
        reference: [M, d].
        subsets: number of random subsets.
        subset_size: vectors per subset and set, drawn without replacement, from 2 to min(N, M).
        degree: of the polynomial.
        gamma: factor of the inner product, 1 / d by default.
        offset: constant inside the power.
        seed: of the draws.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or a subset size out of range.
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
    factor = 1.0 / generated.shape[1] if gamma is None else gamma
    draws, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        x, y = (
            features[torch.from_numpy(draws.choice(len(features), subset_size, replace=False))].double()
            for features in (generated, reference)
        )
        # Diagonals are dropped within a set; between the sets every pair counts.
        within = sum(
            _kernel_sum(z, z, factor, offset, degree)
            - float((factor * z.square().sum(dim=1) + offset).pow(degree).sum())
            for z in (x, y)
        )
        across = _kernel_sum(x, y, factor, offset, degree)
        values.append(within / (subset_size * (subset_size - 1)) - 2.0 * across / subset_size**2)
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _kernel_sum(x: torch.Tensor, y: torch.Tensor, gamma: float, offset: float, degree: int) -> float:
    """Sum of the kernel over all pairs, a block of rows at a time."""
    return sum(float((rows @ y.T).mul_(gamma).add_(offset).pow_(degree).sum()) for rows in x.split(ROWS))


class KernelMetric(Metric):
    """Kernel distance of any kind of features, with the subsets of the protocol, no larger than the smaller set."""

    spread = True
    keeps = FeatureStore

    def compute(
        self, own: torch.Tensor, reference: torch.Tensor, *, settings: ProtocolSettings, **_: Any
    ) -> Sequence[float]:
        """Of features [N, d] and [M, d]."""
        size = min(settings.kid_subset_size, len(own), len(reference))
        return kernel_distance(own, reference, subsets=settings.kid_subsets, subset_size=size)

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        """The size of the subsets."""
        return {f"{self.name}_subset_size": min(settings.kid_subset_size, count, reference_count)}
