"""Learning rate and weight decay as pure functions of the number of updates already done."""

import math
from bisect import bisect_right

from training.settings import OptimizerSettings, ScheduleSettings


def learning_rate(step: int, *, peak: float, base: float, settings: ScheduleSettings, total: int) -> float:
    """Learning rate of the update that follows `step` updates of this optimizer.

    Warm-up rises linearly from `peak * warmup_start` at step 0 to `peak` at `warmup_steps`. Then:

    cosine    falls to `peak * end_lr / base` at `total` and stays there (arXiv:1608.03983 without restarts). The
              releases of Open-MAGVIT2 and IBQ end it one update earlier, at `total - 1`.
    linear    stays for the share `plateau` of the way, then falls in a line to `peak * end_lr / base` at the last
              update, `total - 1` (arXiv:2409.04410, 2412.02692; before them VAR, arXiv:2404.02905).
    steps     `peak * drop_factor^n` after n of the `drop_steps`.
    constant  stays.

    `base` is the learning rate that `end_lr` belongs to (the model's): other optimizers keep their ratio to it.
    `total` counts the updates of this optimizer in the whole run.
    """
    if step < settings.warmup_steps:
        share = step / max(1, settings.warmup_steps)
        return peak * (settings.warmup_start + (1 - settings.warmup_start) * share)
    if settings.name == "constant":
        return peak
    if settings.name == "steps":
        return peak * settings.drop_factor ** bisect_right(settings.drop_steps, step)
    last = total - 1 if settings.name == "linear" else total
    progress = min(1.0, (step - settings.warmup_steps) / max(1, last - settings.warmup_steps))
    if settings.name == "linear":
        left = 1.0 if progress < settings.plateau else (1 - progress) / (1 - settings.plateau)
    else:
        left = 0.5 * (1 + math.cos(math.pi * progress))
    rate = settings.end_lr + (base - settings.end_lr) * left
    return peak * rate / base


def weight_decay(step: int, *, settings: OptimizerSettings, total: int) -> float:
    """Weight decay of the update that follows `step` updates, for parameters that decay.

    `weight_decay`, or with `weight_decay_end` half a cosine between them, which ends at the last update, `total - 1`
    (arXiv:2412.02692, its largest generator).
    """
    if settings.weight_decay_end is None:
        return settings.weight_decay
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total - 1))))
    return settings.weight_decay_end + (settings.weight_decay - settings.weight_decay_end) * left
