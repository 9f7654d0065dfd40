"""Learning-rate schedules as pure functions of the number of updates already done."""

import math

from training.settings import ScheduleSettings


def learning_rate(step: int, *, peak: float, base: float, settings: ScheduleSettings, total: int) -> float:
    """Learning rate of the update that follows `step` updates.

    Warm-up rises linearly from 0 at step 0 to `peak` at `warmup_steps`. The cosine then falls to
    `peak * end_lr / base` at `total` and stays there (arXiv:1608.03983 without restarts).

    Args:
        step: updates already done by this optimizer (a discriminator that starts late counts its own).
        peak: largest learning rate of this optimizer.
        base: the learning rate that `end_lr` belongs to (the model's); other optimizers keep their ratio to it.
        settings: shape, warm-up length and end value.
        total: updates the optimizer makes in the whole run.
    """
    if step < settings.warmup_steps:
        return peak * step / max(1, settings.warmup_steps)
    if settings.name == "constant":
        return peak
    progress = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    rate = settings.end_lr + (base - settings.end_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * rate / base
