"""Classifier-free guidance (arXiv 2207.12598) with the power-cosine schedule of arXiv 2411.00776."""

import math

import torch
from torch import Tensor


def power_cosine_schedule(num_steps: int, scale: float, power: float) -> list[float]:
    """Guidance weight of every step: `w(s) = 1 + (scale - 1) / 2 * (1 - cos(pi * (s / num_steps) ** power))`.

    For `power > 0` it rises from 1 (no guidance) at the first step to just under `scale`; `power = 0` is
    `scale` throughout.

    Raises:
        ValueError: `scale` or `power` is negative.
    """
    if scale < 0 or power < 0:
        raise ValueError(f"guidance_scale={scale} and guidance_power={power} must not be negative")
    # Scalar by scalar in float32, like the runs behind the published numbers: float64 is up to 2 ulp (2e-6) off.
    progress = torch.arange(num_steps, dtype=torch.float32) / num_steps
    return [float((1 - torch.cos(part**power * math.pi)) * 0.5 * (scale - 1) + 1) for part in progress]


def guide(logits: Tensor, weight: float) -> Tensor:
    """Move unconditional logits `weight` times the way to the conditional ones.

    Args:
        logits: `[2B, V]`, conditional rows first, unconditional rows second.
        weight: 0 unconditional, 1 conditional, above 1 beyond it.

    Returns:
        `[B, V]`.
    """
    conditional, unconditional = logits.chunk(2)
    return torch.lerp(unconditional, conditional, weight)
