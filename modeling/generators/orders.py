"""Generation orders of randomized autoregressive training (RAR, arXiv 2411.00776, section 3.2).

Pure functions of given random numbers, so orders do not depend on how a batch is spread over processes.
"""

import torch
from torch import Tensor


def randomness(step: int, start: int, end: int) -> float:
    """Probability that a training sample is permuted, after `step` completed updates (equation 5).

    1 before `start`, then linear to 0 at `end`, and 0 afterwards. Raises ValueError if `end < start`.
    """
    if end < start:
        raise ValueError(f"randomness: end={end} must not be smaller than start={start}")
    if step < start:
        return 1.0
    if step >= end:  # before the division: start == end == 0 is raster order throughout
        return 0.0
    return 1.0 - (step - start) / (end - start)


def sample_orders(uniform: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Per sample a random permutation where `uniform < ratio`, otherwise raster.

    Args:
        uniform: `[B]` in `[0, 1)`: decides whether a sample is permuted.
        noise: `[B, N]` independent continuous numbers: their ranking is the permutation.
        ratio: probability of a permutation.

    Returns:
        int64 `[B, N]`; `orders[b, k]` is the raster position of the k-th token of the sequence.
    """
    permutations = noise.argsort(dim=1, stable=True)
    raster = torch.arange(noise.shape[1], device=noise.device)
    return torch.where((uniform < ratio)[:, None], permutations, raster)


def permute_tokens(tokens: Tensor, orders: Tensor | None) -> Tensor:
    """Raster tokens `[B, N]` in the sequence order `orders` (None: raster): the training targets."""
    return tokens if orders is None else tokens.gather(1, orders)
