"""What a run will never reach because it is short: found before training, and named with what to write instead.

There is no check of `training.ema_decay`: the average forgets its first weights within five updates, whatever the decay
(training/ema.py), so a short run cannot end with an average of initial weights.
"""

import math
from collections.abc import Iterator

from modeling.generators.orders import randomness
from training.generator_settings import RARSettings
from training.settings import ScheduleSettings, TrainingSettings
from training.tokenizer_settings import TokenizerLossSettings

LONG_WARMUP = 0.5  # share of a run; the published recipes warm up for at most a quarter
PERIODS = {
    "preview_every": "no picture is made",
    "evaluate_every": "nothing is measured",
    "save_every": "no checkpoint is saved",
}


def short_run(training: TrainingSettings, schedule: ScheduleSettings) -> Iterator[str]:
    """Warnings about the learning rate, and about what is done every so many steps; lengths in steps."""
    end, warmup = training.max_steps, schedule.warmup_steps
    if warmup >= end:
        reached = schedule.warmup_start + (1 - schedule.warmup_start) * (end - 1) / warmup
        yield (
            f"schedule.warmup_steps={warmup} is not over before training.max_steps={end}: the learning rate only rises,"
            f" to {reached:.0%} of its peak; write a share of the run, schedule.warmup_steps=5%"
        )
    elif warmup > LONG_WARMUP * end:
        yield (
            f"schedule.warmup_steps={warmup} takes {warmup / end:.0%} of training.max_steps={end}; write a share of the"
            " run, schedule.warmup_steps=5%"
        )
    late = [step for step in schedule.drop_steps if step >= end]
    if late:
        yield (
            f"schedule.drop_steps={schedule.drop_steps}: the learning rate does not drop at {late}, which"
            f" training.max_steps={end} does not reach; write shares of the run, schedule.drop_steps=[75%,90%]"
        )
    for key, missing in PERIODS.items():
        if getattr(training, key) > end:
            yield (
                f"training.{key}={getattr(training, key)}: {missing} before the end, training.max_steps={end};"
                f" write training.{key}={max(1, end // 10)}, or 0 if that is meant"
            )
    least = (1 + (training.patience or 0)) * training.evaluate_every  # the first evaluation may be the best
    if training.patience is not None and least >= end:
        yield (
            f"training.patience={training.patience} with evaluate_every={training.evaluate_every}: the run cannot stop"
            f" before training.max_steps={end}; write training.evaluate_every={max(1, end // 20)}"
        )
    both = math.lcm(training.save_every, training.milestone_every)  # a milestone is a checkpoint that was due
    if training.milestone_every and not 0 < both <= end:
        yield (
            f"training.milestone_every={training.milestone_every} with save_every={training.save_every}: no checkpoint"
            f" before training.max_steps={end} is at a multiple of both, so none is kept for good; write"
            " milestone_every as a multiple of save_every within the run, or 0 if that is meant"
        )


def short_tokenizer_run(
    training: TrainingSettings,
    schedule: ScheduleSettings,
    losses: TokenizerLossSettings,
    *,
    adversarial: bool,
    entropy: bool,
) -> Iterator[str]:
    """As `short_run`, and about the terms of a tokenizer's loss.

    `adversarial`: the run has a discriminator; `entropy`: its bottleneck has an entropy term.
    """
    yield from short_run(training, schedule)
    end, start = training.max_steps, losses.discriminator_start
    if losses.quantize_end >= end:
        yield (
            f"losses.quantize_end={losses.quantize_end} is not before training.max_steps={end}: the soft start is never"
            f" over, and in the last step {1 - losses.quantized_share(end - 1):.0%} of the images still bypass the"
            " codebook; write shares of the run, losses.quantize_start=5% losses.quantize_end=10%"
        )
    if adversarial and start >= end:
        yield (
            f"losses.discriminator_start={start} is not before training.max_steps={end}: the discriminator never"
            " trains; write a share of the run, losses.discriminator_start=30%, or discriminator=null"
        )
    elif adversarial and start and end - start <= schedule.warmup_steps < end:
        yield (
            f"losses.discriminator_start={start} leaves {end - start} of training.max_steps={end} to the discriminator,"
            f" whose own warm-up of schedule.warmup_steps={schedule.warmup_steps} is then never over; write shares of"
            " the run, losses.discriminator_start=30% schedule.warmup_steps=5%"
        )
    if entropy and losses.entropy_boost and losses.entropy_boost_steps > end:
        yield (
            f"losses.entropy_boost_steps={losses.entropy_boost_steps} is after training.max_steps={end}: the entropy"
            " term never has its own weight; write a share of the run, losses.entropy_boost_steps=5%"
        )


def short_generator_run(
    training: TrainingSettings, schedule: ScheduleSettings, rar: RARSettings | None
) -> Iterator[str]:
    """As `short_run`, and about the orders of a run with a section `rar`."""
    yield from short_run(training, schedule)
    end = training.max_steps
    if rar is not None and rar.randomness_anneal_end > end:
        left = randomness(end - 1, rar.randomness_anneal_start, rar.randomness_anneal_end)
        yield (
            f"rar.randomness_anneal_start={rar.randomness_anneal_start} and rar.randomness_anneal_end="
            f"{rar.randomness_anneal_end}: at training.max_steps={end} {left:.0%} of the orders are still random, but"
            " samples are drawn in raster order; write shares of the run, rar.randomness_anneal_start=50%"
            " rar.randomness_anneal_end=75%"
        )
