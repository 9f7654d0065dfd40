"""Advice for runs on few images that are shown often: what such a run learns by heart, and what to change.

All rules are here. Their numbers are rules of thumb: the shipped RAR of 2,213 emoji, with 34 parameters per training
token and 116 epochs, is best on held-out data at its first evaluation, after 29 epochs
(assets/models/rar_openmoji/metrics.jsonl).
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from common.console import count, say
from training.settings import TrainingSettings

FEW_IMAGES, MANY_EPOCHS = 20_000, 10  # below and above: advice is given
LEARNT_BY_HEART = 30  # epochs within which a generator of few images is at its best
PER_TOKEN, PER_PIXEL = 10, 1  # trained parameters for every number of the training data
DROPOUT = 0.1  # that a generator of few images should have
PER_CLASS = 50  # images
PER_CODE = 20  # training tokens for each code of a codebook
AUGMENTATIONS = ("random_flip", "random_crop")  # options of data sets of images


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """How much data a run has, and how much model."""

    images: int
    classes: int
    epochs: float
    parameters: int  # that are trained
    numbers: int  # of an image that the model learns: its tokens, or its pixel values
    unit: str  # what these are: token, pixel value

    @property
    def few(self) -> bool:
        """Whether there is reason for advice."""
        return self.images < FEW_IMAGES and self.epochs >= MANY_EPOCHS

    @property
    def per_number(self) -> float:
        """Trained parameters for every number of the training data."""
        return self.parameters / (self.images * self.numbers)

    def __str__(self) -> str:
        classes = f" in {self.classes} classes" if self.classes > 1 else ""
        return (
            f"{self.images} images{classes}, each shown {self.epochs:.0f} times; {count(self.parameters)} parameters,"
            f" {self.per_number:.2g} per {self.unit} of the training data"
        )


def trained(module: nn.Module) -> int:
    """Number of parameters that training changes."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def default(kind: type, option: str) -> Any:
    """What an option of a constructor is if it is not given; None if there is no such option, or it must be given."""
    found = inspect.signature(kind).parameters.get(option)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def say_advice(facts: DataFacts, lines: Iterable[str]) -> None:
    """Print the facts and the advice, if there is reason for some."""
    if facts.few:
        say(f"few images: {facts}")
        for line in lines:
            say(f"  - {line}")


def generator_advice(
    facts: DataFacts,
    training: TrainingSettings,
    *,
    dropout: float | None,
    validation: bool,
    crops: int | None,
) -> Iterator[str]:
    """What to change in the run of a generator: a line each.

    `dropout`: None for a generator without; `validation`: there are held-out tokens; `crops`: stored versions of every
    image, None if that is not known.
    """
    if not facts.few:
        return
    if not validation:
        yield "there are no held-out tokens, so nothing will show when it learns by heart; name some in data.validation"
    elif facts.epochs > LEARNT_BY_HEART:
        yield from _stop_in_time(facts, training)
    if facts.per_number > PER_TOKEN:
        raised = dropout is not None and dropout < DROPOUT
        first = f"generator.dropout={DROPOUT} or more (now {dropout:g}), or " if raised else ""
        yield f"the generator is large for so few tokens; {first}a smaller generator.hidden_size and .depth"
    if crops == 1:
        yield "every image has one version; pretokenize with crops=flip, or ten_crop, where mirrored images make sense"
    if facts.classes > 1 and facts.images < PER_CLASS * facts.classes:
        each = facts.images / facts.classes
        yield f"{each:.0f} images per class are few: samples will be close to copies; merge classes, or add images"


def tokenizer_advice(
    facts: DataFacts,
    training: TrainingSettings,
    *,
    section: Mapping[str, Any],
    kind: type,
    codes: int | None,
    tokens: int,
) -> Iterator[str]:
    """What to change in the run of a tokenizer: a line each.

    `section`: data.train; `kind`: class of its data set; `codes`: size of the codebook, None without one;
    `tokens`: of an image.
    """
    if not facts.few:
        return
    missing = [name for name in AUGMENTATIONS if default(kind, name) is False and not section.get(name)]
    if "random_crop" in missing and section.get("random_area"):  # parts of random shape instead
        missing.remove("random_crop")
    if missing:
        keys = " ".join(f"data.train.{name}=true" for name in missing)
        yield f"images could be varied more; {keys}"
    if facts.per_number > PER_PIXEL:
        yield from _stop_in_time(facts, training)
        yield "the model has more parameters than its training data has values; choose a smaller one, or add images"
    if codes is not None and facts.images * tokens < PER_CODE * codes:
        each = facts.images * tokens / codes
        yield (
            f"a codebook of {codes} codes has {each:.1f} training tokens per code, and many codes will stay unused;"
            f" choose at most {_power_of_two(facts.images * tokens // PER_CODE)} codes"
        )


def _stop_in_time(facts: DataFacts, training: TrainingSettings) -> Iterator[str]:
    wanted = []
    if training.patience is None:
        wanted.append("training.patience=5")
    if not training.keep_best:
        wanted.append("training.keep_best=true")
    often = max(1, training.max_steps // 20)
    if wanted and not 0 < training.evaluate_every <= 2 * often:
        wanted.append(f"training.evaluate_every={often}")
    if wanted:
        yield (
            f"images that are shown {facts.epochs:.0f} times may be learnt by heart; stop in time, and keep the best"
            f" weights: {' '.join(wanted)}"
        )


def _power_of_two(number: int) -> int:
    return 2 ** max(4, number.bit_length() - 1)
