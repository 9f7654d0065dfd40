"""Mean and covariance of a stream of feature vectors, from sums that add up over batches and processes."""

from dataclasses import dataclass

import numpy as np
import torch

from common import distributed

ROWS = 4096  # rows widened to float64 at a time; bounds the memory of one large update


@dataclass(frozen=True)
class Statistics:
    """Mean float64 [d] and covariance float64 [d, d] (divisor N - 1) of `count` features (None: not known)."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


class Moments:
    """Count, sum and sum of outer products of feature vectors [B, dim] in float64.

    All three merge by addition, so the result does not depend on batches, order or processes beyond rounding. The
    mean is subtracted at the end, which float64 carries for features whose mean is not far above their deviation.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim={dim} must be at least 1")
        self.dim = dim
        self.count = 0
        self.total = torch.zeros(dim, dtype=torch.float64)  # on the CPU: MPS lacks float64
        self.products = torch.zeros(dim, dim, dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add feature vectors of any floating dtype; positions do not matter.

        Raises:
            ValueError: the shape is wrong, or values are not finite (they would spoil every later result).
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected [B, {self.dim}]")
        for rows in features.detach().split(ROWS):
            rows = rows.cpu().double()
            if not torch.isfinite(rows).all():
                bad = int((~torch.isfinite(rows)).any(dim=1).sum())
                raise ValueError(f"{bad} of {len(rows)} feature vectors hold values that are not finite")
            self.count += len(rows)
            self.total += rows.sum(dim=0)
            self.products.addmm_(rows.T, rows)

    @property
    def mean(self) -> torch.Tensor:
        """[d], float64. Raises ValueError if nothing was counted."""
        if self.count < 1:
            raise ValueError("the mean of no feature vectors is undefined")
        return self.total / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """[d, d], float64, with divisor N - 1, exactly symmetric. Raises ValueError below two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        centred = self.products - torch.outer(self.total, self.mean)
        return (centred + centred.T) / (2 * (self.count - 1))

    def result(self, device: torch.device | str = "cpu") -> Statistics:
        """Mean and covariance over all processes, all of which must call it.

        The process group communicates from `device` ("cuda" for NCCL); a single process does not use it.
        """
        whole = self
        if distributed.is_active():
            whole = Moments(self.dim)  # this process's own sums stay as they are
            whole.count = int(distributed.all_reduce_sum(torch.tensor(self.count, device=device)))
            whole.total = distributed.all_reduce_sum(self.total.to(device)).cpu()
            whole.products = distributed.all_reduce_sum(self.products.to(device)).cpu()
        return Statistics(whole.mean.numpy(), whole.covariance.numpy(), whole.count)


def statistics_of(features: torch.Tensor, times: torch.Tensor | None = None) -> Statistics:
    """Mean and covariance of features [N, d] in one process; `times` int64 [N] counts each row so often.

    Raises:
        ValueError: values are not finite, or fewer than two rows count.
    """
    moments = Moments(features.shape[1])
    for first in range(0, len(features), ROWS):
        rows = features[first : first + ROWS]
        moments.update(rows if times is None else rows.repeat_interleave(times[first : first + ROWS], dim=0))
    return Statistics(moments.mean.numpy(), moments.covariance.numpy(), moments.count)
