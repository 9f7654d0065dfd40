"""What every data set in this room is: an indexed, random-access source of labelled examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from common.images import PixelRules
from data.order import FullShuffle, Order, WindowShuffle
from storage.left_out import LeftOut

# Up to here all examples are shuffled at once: 4 bytes per example in every worker, 64 MiB at most.
MOST_SHUFFLED_AT_ONCE = 2**24
MOST_CLASSES = 2**20  # that labels alone can stand for: a larger one is an identifier, or a mistake
ONE_CLASS = "image"  # the name of the class of images without labels
_BLOCK, _BLOCKS = 2**12, 2**6  # of larger sets: consecutive examples, and how many blocks of them are mixed


class CorruptSample(Exception):
    """One example cannot be read. Loaders skip it by name and go on; a broken data set is a ValueError instead.

    ``name`` is the file path, or shard path and member name.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both in args, so that the exception survives pickling by a worker
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Source(ABC):
    """Map-style source: example ``index`` is the same in every process, whatever was read before."""

    class_names: list[str]  # labels are positions in it
    labels: np.ndarray  # int64 [n]
    item_key: str  # "images" (uint8 [3, H, W]) or "tokens" (int64 [N])
    item_shape: tuple[int, ...]
    has_captions: bool = False  # batches then hold them
    rules: PixelRules | None = None  # how image files become pixels, where there are some

    @cached_property
    def left_out(self) -> LeftOut:
        """What of its files is no example; a source that leaves something out assigns it. Programs print it."""
        return LeftOut()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, index: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Return (item, label) of one example; all randomness comes from ``rng``.

        Raises:
            CorruptSample: this example cannot be read; others can.
        """

    def load_many(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> Tensor:
        """Return items [B, *item_shape], equal to ``load`` one by one; overridden where a batch is cheaper."""
        return torch.stack([self.load(index, rng)[0] for index, rng in zip(indices, rngs, strict=True)])

    def file(self, index: int) -> tuple[str, bytes]:
        """Name and content of the image file of an example, where ``rules`` say how it becomes pixels.

        Raises:
            CorruptSample: the file cannot be read; whether it is an image is not looked at.
            ValueError: the source has no image files.
        """
        raise ValueError(f"{type(self).__name__} has no image files")

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Texts of examples that ``load`` can read; ValueError unless ``has_captions`` is true."""
        raise ValueError(f"{type(self).__name__} has no captions")

    def order(self, seed: int) -> Order:
        """In which order training shows the examples; one that is not held in memory for huge sets."""
        if len(self) <= MOST_SHUFFLED_AT_ONCE:
            return FullShuffle(len(self), seed=seed)
        starts = np.append(np.arange(0, len(self), _BLOCK), len(self))
        return WindowShuffle(starts, window=_BLOCKS, seed=seed)

    def class_counts(self) -> dict[str, int]:
        """Number of examples per class name."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}


def count_classes(
    num_classes: int | None, names: Sequence[str] | None, *, largest: int, where: Callable[[], str]
) -> int:
    """The number of classes: as given, else of the names, else one more than the largest label found.

    Args:
        where: name of the example with that label.

    Raises:
        ValueError: names and number differ; the label is not below the number; or without a number or names, the label
            is not below MOST_CLASSES.
    """
    if names is not None and num_classes is not None and len(names) != num_classes:
        raise ValueError(f"class_names has {len(names)} names, but num_classes={num_classes}")
    count = len(names) if names is not None else num_classes
    if count is None and largest >= MOST_CLASSES:
        raise ValueError(
            f"{where()} has label {largest}, too large for the number of a class; expected less than {MOST_CLASSES},"
            " or num_classes=..."
        )
    if count is not None and largest >= count:
        raise ValueError(f"{where()} has label {largest}, but there are {count} classes")
    return largest + 1 if count is None else count
