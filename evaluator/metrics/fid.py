"""Frechet distance between Gaussians fitted to features (FID, arXiv:1706.08500; in other spaces alike).

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

The usual tools take a general matrix root, which is slow and loses half of the digits for small eigenvalues. With any
factor S1 = L L^T the trace of the root is the sum of the square roots of the eigenvalues of the symmetric L^T S2 L,
which come out accurately.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evaluator.inception_network import DIMS
from evaluator.metrics.base import Metric
from evaluator.moments import Moments
from evaluator.protocol import ProtocolSettings
from evaluator.spaces import SPACES

Array = torch.Tensor | np.ndarray

# A covariance has no eigenvalue below zero; statistics once stored in float32 have some by rounding, damaged ones
# more. Relative to the largest eigenvalue.
NEGATIVE = 1e-4


class FrechetMetric(Metric):
    """Frechet distance of any kind of features."""

    counted = True
    in_references = True
    keeps = Moments

    def compute(self, own: Any, reference: Any, **_: Any) -> Sequence[float]:
        statistics = (reference.mean, reference.covariance, own.mean, own.covariance)
        return [frechet_distance(*statistics, count1=reference.count, count2=own.count)]

    def warnings(
        self, samples: Mapping[str, Any], reference: Mapping[str, Any] | None, settings: ProtocolSettings
    ) -> list[str]:
        dims = DIMS | {space.features: space.dim for space in SPACES.values()}
        dim, counts = dims.get(self.features), [samples["count"], (reference or {}).get("count")]
        least = min(count for count in counts if count is not None)
        if dim is None or least > dim:
            return []
        return [
            f"{self.name}: {least} images span {least - 1} of {dim} dimensions at most; it is far too high"
        ]


class ReconstructionFID(FrechetMetric):
    """rFID: the reference holds the images that were reconstructed, or as many undescribed ones."""

    def misnamed(self, image_set: str, same_count: bool) -> str | None:
        if image_set in ("originals", "validation") or (image_set == "images" and same_count):
            return None
        shown = {"training": "training images", "images": "another number of images"}
        return (
            f"{self.name} compares reconstructions with the validation images they were made of, but the reference"
            f" shows {shown.get(image_set, 'images that it does not describe')}; ask for fid, or give the validation"
            " images as reference"
        )


class GenerationFID(FrechetMetric):
    """gFID: generated images against training images, never against the originals of reconstructions."""

    def misnamed(self, image_set: str, same_count: bool) -> str | None:
        if image_set != "originals":
            return None
        return (
            f"{self.name} compares generated images with training images, but the reference are the originals of the"
            " samples; ask for rfid"
        )


def frechet_distance(
    mean1: Array,
    cov1: Array,
    mean2: Array,
    cov2: Array,
    *,
    count1: int | None = None,
    count2: int | None = None,
) -> float:
    """Squared Frechet distance of two Gaussians, in float64 on the CPU; equal sets may give a tiny negative number.

    Singular covariances (dead features, fewer samples than dimensions) need no offset: the one of lower rank is
    factored without its null space.

    Args:
        mean1: [d].
        cov1: [d, d] with divisor N - 1; usually the reference.
        count1: samples behind the first set, if known; N samples limit the rank to N - 1.

    Raises:
        ValueError: shapes do not fit together, values are not finite, or a matrix is not a covariance.
    """
    mean1, cov1 = _checked("first", mean1, cov1)
    mean2, cov2 = _checked("second", mean2, cov2)
    if mean1.shape != mean2.shape:
        raise ValueError(f"means have sizes {len(mean1)} and {len(mean2)}; features must be of one kind")
    # Covariances come from sums of squares, so they carry rounding noise of the size of the squared means.
    floor = torch.finfo(torch.float64).eps * float(max(mean1.square().sum(), mean2.square().sum()))
    root = _root_trace(cov1, cov2, count1=count1, count2=count2, floor=floor)
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2.0 * root)


def _root_trace(
    cov1: torch.Tensor, cov2: torch.Tensor, *, count1: int | None, count2: int | None, floor: float
) -> float:
    """tr (S1 S2)^(1/2) of covariances [d, d]; one without eigenvalues above `floor`, the rounding noise, is zero."""
    dim = len(cov1)
    # N centred samples span N - 1 dimensions at most.
    limits = [dim if count is None else max(0, min(dim, count - 1)) for count in (count1, count2)]
    pairs = [(cov1, cov2, limits[0]), (cov2, cov1, limits[1])]
    # A matrix that passes for regular although it is not adds the root of its rounding noise for every missing
    # dimension, so both are tried before the first one is used.
    factors = [_cholesky(matrix) if limit == dim else None for matrix, _, limit in pairs]
    if all(factor is not None for factor in factors):
        factor, other = factors[0], cov2
    else:
        singular = [p for p, factor in zip(pairs, factors, strict=True) if factor is None]
        if limits[0] != limits[1] and max(limits) < dim:
            singular = [min(singular, key=lambda pair: pair[2])]  # known to be the smaller: one eigh, not two
        found = [(_low_rank(matrix, limit, floor), other) for matrix, other, limit in singular]
        factor, other = min(found, key=lambda pair: pair[0].shape[1])
    if factor.shape[1] == 0:  # a point has no spread
        return 0.0
    values = torch.linalg.eigvalsh(factor.T @ other @ factor)  # [k], of the symmetric L^T S2 L
    return float(values.clamp(min=0).sqrt().sum())


def _float64(values: Array) -> torch.Tensor:
    return torch.as_tensor(values).detach().cpu().double()  # elsewhere float64 is slow or missing


def _checked(which: str, mean: Array, cov: Array) -> tuple[torch.Tensor, torch.Tensor]:
    mean, cov = _float64(mean), _float64(cov)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{which} statistics: mean {tuple(mean.shape)} and covariance {tuple(cov.shape)}, expected [d] and [d, d]"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError(f"{which} statistics hold values that are not finite")
    return mean, (cov + cov.T) / 2  # exactly symmetric, as eigh assumes


def _noise(cov: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Size below which an eigenvalue cannot be told from rounding."""
    return len(cov) * torch.finfo(cov.dtype).eps * largest


def _cholesky(cov: torch.Tensor) -> torch.Tensor | None:
    """L with L L^T = cov, or None if the matrix is singular to working precision."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    if failed or factor.diagonal().square().min() <= _noise(cov, cov.diagonal().max()):
        return None
    return factor


def _low_rank(cov: torch.Tensor, limit: int, floor: float) -> torch.Tensor:
    """L [d, k] with L L^T = cov and k its numerical rank, at most `limit`."""
    values, vectors = torch.linalg.eigh(cov)
    if values.abs().max() <= floor:  # all samples are alike: a collapsed model is measured, not refused
        return vectors[:, :0]
    if values[0] < -max(NEGATIVE * float(values[-1].abs()), floor):
        raise ValueError(f"not a covariance: eigenvalues from {values[0]:.3g} to {values[-1]:.3g}")
    rank = min(int((values > _noise(cov, values[-1])).sum()), limit)  # eigh sorts in ascending order
    first = len(values) - rank
    return vectors[:, first:] * values[first:].sqrt()
