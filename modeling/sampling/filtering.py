"""Which tokens may be drawn at all: the likeliest few (top-k), or those that hold most of the mass (top-p)."""

import math

import torch
from torch import Tensor


def check_filters(top_k: int, top_p: float) -> None:
    """Raise ValueError if `top_k` is negative, or `top_p` is not in (0, 1]."""
    if top_k < 0:
        raise ValueError(f"top_k={top_k} must not be negative (0 = all tokens)")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be in (0, 1] (1 = all tokens)")


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the logits of tokens that must not be drawn to minus infinity; at least one token stays.

    First top-k: tokens at least as likely as the k-th likeliest stay, so ties at the cut stay together. Then, with
    the probabilities of what is left, nucleus sampling (arXiv 1904.09751): in descending order a token stays while
    the mass before it is at most `top_p`; the token that crosses it stays.

    `logits` `[..., V]` are already divided by the temperature. `top_k` 0 and `top_p` 1 keep all tokens.
    """
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]  # not indices: ties stay together
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        # Shifted by one, not mass - p: exactly 0 before the likeliest token, which always stays.
        before = torch.cat([torch.zeros_like(mass[..., :1]), mass[..., :-1]], dim=-1)
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before > top_p)
        logits = logits.masked_fill(dropped, -math.inf)
    return logits
