"""Frechet distance between Gaussians fitted to features (FID, arXiv:1706.08500; sFID and FD-DINOv2 alike).

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

The usual tools take a general matrix root, which is slow and loses half of the digits for small eigenvalues. With any
factor S1 = L L^T the trace of the root is the sum of the square roots of the eigenvalues of the symmetric L^T S2 L,
which come out accurately.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluator.metrics.base import Metric
from evaluator.moments import Moments

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
        """Of two `evaluator.moments.Statistics`."""
        statistics = (reference.mean, reference.covariance, own.mean, own.covariance)
        return [frechet_distance(*statistics, count1=reference.count, count2=own.count)]


class ReconstructionFID(FrechetMetric):
    """rFID: the reference are the images that were reconstructed."""

    def misnamed(self, image_set: str, same_count: bool) -> str | None:
        """Originals, validation images, or undescribed images of the same number are accepted."""
        if image_set in ("originals", "validation") or (image_set == "images" and same_count):
            return None
        shown = {"training": "training images", "images": "another number of images"}
        return (
            f"{self.name} compares reconstructions with the validation images they were made of, but the reference"
            f" shows {shown.get(image_set, 'images that it does not describe')}; ask for fid, or give the validation"
            " images as reference"
        )


class GenerationFID(FrechetMetric):
    """gFID: generated images against training images."""

    def misnamed(self, image_set: str, same_count: bool) -> str | None:
        """The originals of reconstructions are refused."""
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
    """Squared Frechet distance of two Gaussians, in float64 on the CPU.

    Singular covariances (dead features, fewer samples than dimensions) need no offset: the one of lower rank is
    factored without its null space.

    Args:
        mean1: [d].
        cov1: [d, d] with divisor N - 1; usually the reference.
        mean2: [d].
        cov2: [d, d].
        count1: samples behind the first set, if known; N samples limit the rank to N - 1.
        count2: samples behind the second set, if known.

    Returns:
        The distance; equal sets may give a tiny negative number, which is not clamped.

    Raises:
        ValueError: for shapes that do not fit together, values that are not finite or a matrix that is not a
            covariance.
    """
    mean1, cov1 = _checked("first", mean1, cov1)
    mean2, cov2 = _checked("second", mean2, cov2)
    if mean1.shape != mean2.shape:
        raise ValueError(f"means have sizes {len(mean1)} and {len(mean2)}; features must be of one kind")
    # Covariances come from sums of squares, so they carry rounding noise of the size of the squared means.
    floor = torch.finfo(torch.float64).eps * float(max(mean1.square().sum(), mean2.square().sum()))
    root = root_trace(cov1, cov2, count1=count1, count2=count2, floor=floor)
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2.0 * root)


def root_trace(
    cov1: torch.Tensor,
    cov2: torch.Tensor,
    *,
    count1: int | None = None,
    count2: int | None = None,
    floor: float = 0.0,
) -> float:
    """tr (S1 S2)^(1/2) of two covariances [d, d] in float64; counts as in `frechet_distance`.

    Args:
        floor: size of the rounding noise that the matrices carry; one that holds nothing larger is zero.

    Raises:
        ValueError: if a singular matrix has clearly negative eigenvalues.
    """
    dim = len(cov1)
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
            singular = [min(singular, key=lambda pair: pair[2])]
        found = [(_low_rank(matrix, limit, floor), other) for matrix, other, limit in singular]
        factor, other = min(found, key=lambda pair: pair[0].shape[1])
    if factor.shape[1] == 0:
        return 0.0
    values = torch.linalg.eigvalsh(factor.T @ other @ factor)
    return float(values.clamp(min=0).sqrt().sum())


def frechet_distance_of_features(x: Array, y: Array) -> float:
    """The same distance straight from two feature sets, exact whatever their rank.

    With centred rows, tr (S1 S2)^(1/2) = |X Y^T|_* / sqrt((N1 - 1)(N2 - 1)) (nuclear norm); triangular factors
    replace X and Y, so no matrix is larger than min(N, d) squared.

    Args:
        x: [N1, d], N1 at least 2.
        y: [N2, d], N2 at least 2.

    Raises:
        ValueError: for other shapes or values that are not finite.
    """
    x, y = _float64(x), _float64(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"features of shapes {shapes}: expected [N1, d] and [N2, d], at least 2 rows each")
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError("features hold values that are not finite")
    means = [x.mean(dim=0), y.mean(dim=0)]
    # X = Q R with orthonormal columns in Q, so |X Y^T|_* = |R1 R2^T|_*, and the trace is the size of R.
    roots = [
        torch.linalg.qr(features - mean, mode="r").R / (len(features) - 1) ** 0.5
        for features, mean in zip((x, y), means, strict=True)
    ]
    traces = sum(root.square().sum() for root in roots)
    nuclear = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means[0] - means[1]).square().sum() + traces - 2.0 * nuclear)


def _float64(values: Array) -> torch.Tensor:
    """On the CPU in float64; other devices have no fast or no float64 at all."""
    return torch.as_tensor(values).detach().cpu().double()


def _checked(which: str, mean: Array, cov: Array) -> tuple[torch.Tensor, torch.Tensor]:
    mean, cov = _float64(mean), _float64(cov)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{which} statistics: mean {tuple(mean.shape)} and covariance {tuple(cov.shape)}, expected [d] and [d, d]"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError(f"{which} statistics hold values that are not finite")
    return mean, (cov + cov.T) / 2


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
    rank = min(int((values > _noise(cov, values[-1])).sum()), limit)
    first = len(values) - rank
    return vectors[:, first:] * values[first:].sqrt()
