"""Which tokens are hidden in the training of masked generators (MaskGIT, arXiv 2202.04200, section 3.2).

With the arccos curve of the released models instead of the cosine of the paper: low mask ratios are rarer.
Pure functions of given random numbers, so masks do not depend on how a batch is spread over processes.
"""

import math

import torch
from torch import Tensor

_SMALLEST_RATIO = 1e-6


def mask_ratio(t: Tensor) -> Tensor:
    """Share of hidden tokens, `arccos(t) / (pi / 2)`: 1 at `t = 0`, falling to almost 0 at `t = 1`; any shape."""
    return (torch.arccos(t) / (math.pi / 2)).clamp(_SMALLEST_RATIO, 1.0)


def mask_counts(t: Tensor, num_tokens: int) -> Tensor:
    """Number of hidden tokens, int64 in the shape of `t` in `[0, 1]`: at least 1, at most `num_tokens`."""
    # Uniform t hides 2 / pi of the tokens on average; round takes halves to the even neighbour.
    return (num_tokens * mask_ratio(t)).round().long().clamp_(min=1)


def sample_masks(uniform: Tensor, noise: Tensor) -> Tensor:
    """True at the tokens to hide, bool `[B, N]`: per sample a random subset of random size.

    Args:
        uniform: `[B]` in `[0, 1)`: decides how many (`mask_counts`).
        noise: `[B, N]` independent continuous numbers: their ranking decides which ones.
    """
    # The places of the sorted noise are a random permutation: as good as the ranks, for one sort instead of two.
    permutations = noise.argsort(dim=1, stable=True)
    return permutations < mask_counts(uniform, noise.shape[1])[:, None]
