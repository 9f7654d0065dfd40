"""Classifier-free guidance (arXiv 2207.12598) and the schedules of its weight.

Weights are those of `guide`: 0 is unconditional, 1 conditional, more is beyond that.
"""

import math

import torch
from torch import Tensor

GUIDANCE_SCHEDULES = ("constant", "linear", "power-cosine")


def power_cosine_schedule(num_steps: int, scale: float, power: float) -> list[float]:
    """Guidance weight of every step: `w(s) = 1 + (scale - 1) / 2 * (1 - cos(pi * (s / num_steps) ** power))`.

    For `power > 0` it rises from 1 (no guidance) at the first step to just under `scale`; `power = 0` is
    `scale` throughout. Raises ValueError if `scale` or `power` is negative.
    """
    if scale < 0 or power < 0:
        raise ValueError(f"guidance_scale={scale} and guidance_power={power} must not be negative")
    # Scalar by scalar in float32, like the runs behind the published numbers: float64 is up to 2 ulp (2e-6) off.
    progress = torch.arange(num_steps, dtype=torch.float32) / num_steps
    return [float((1 - torch.cos(part**power * math.pi)) * 0.5 * (scale - 1) + 1) for part in progress]


def guidance_weights(schedule: str, num_steps: int, scale: float, power: float) -> list[float]:
    """Guidance weight of every step of a masked generator.

    Args:
        schedule: "constant" is `1 + scale`, "linear" rises from 1 by `scale / num_steps` a step: both add
            `scale` on top of the conditional logits. "power-cosine" is `power_cosine_schedule` (arXiv
            2411.00776) and goes to `scale` itself.
        scale: 0 switches guidance off (1 throughout), whatever the schedule.
        power: for power-cosine only.

    Raises:
        ValueError: an argument is out of range or the schedule is unknown.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if scale < 0 or power < 0:
        raise ValueError(f"guidance_scale={scale} and guidance_power={power} must not be negative")
    if schedule not in GUIDANCE_SCHEDULES:
        choices = ", ".join(GUIDANCE_SCHEDULES)
        raise ValueError(f"guidance_schedule={schedule!r} is unknown; choose {choices}")
    if scale == 0:
        return [1.0] * num_steps
    if schedule == "constant":
        return [1.0 + scale] * num_steps
    if schedule == "linear":
        return [1.0 + scale * step / num_steps for step in range(num_steps)]
    return power_cosine_schedule(num_steps, scale, power)


def guide(logits: Tensor, weight: float) -> Tensor:
    """Move unconditional logits `weight` times the way to the conditional ones.

    `logits` are `[2B, ...]`, conditional rows first; the result is `[B, ...]`.
    """
    conditional, unconditional = logits.chunk(2)
    return torch.lerp(unconditional, conditional, weight)  # weight above 1 extrapolates
