"""Tar shards in the webdataset layout, read at random places.

A sample is an image member (``.jpg``, ``.jpeg``, ``.png`` or ``.webp``) and a label member with the same name before
the first dot: ``.cls`` holds the class number as text, ``.json`` holds it under ``label``, ``cls``, ``class_id`` or
``class``. Shards are indexed once, so that any sample can be read by its position: shuffling is global and a run
resumes anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from braceexpand import UnbalancedBracesError, braceexpand

from data.source import CorruptSample, Source
from data.tar_index import LABEL_KEYS, NO_LABEL, open_index
from data.transforms import ImageTransform, Resize, decode_image


class WebDataset(Source):
    """Images of local tar shards.

    Args:
        path: shards as a brace pattern, e.g. ``imagenet-train-{0000..0252}.tar``, or a list of patterns.
        image_size: side of the images delivered, uint8 [3, image_size, image_size].
        resize_shorter_edge, resize, random_crop, random_flip: see ``ImageTransform``.
        label_key: key of the label in ``.json`` members, if it is another than those above.
        num_classes: number of classes; one more than the largest label found if None.
        class_names: a name per class; the numbers if None.
        keep_index: keep what was found beside each shard, or in the user's cache folder if that is read-only.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard is cut short or is no tar file; there are no images, or no labels, or larger labels
            than classes.
    """

    item_key = "images"

    def __init__(
        self,
        *,
        path: str | list[str],
        image_size: int,
        resize_shorter_edge: int | None = None,
        resize: Resize = "shorter_edge",
        random_crop: bool = False,
        random_flip: bool = False,
        label_key: str | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        keep_index: bool = True,
    ) -> None:
        self.transform = ImageTransform(
            image_size=image_size,
            resize_shorter_edge=resize_shorter_edge,
            resize=resize,
            random_crop=random_crop,
            random_flip=random_flip,
        )
        self.item_shape = (3, image_size, image_size)
        self.shards = expand_shards(path)
        for shard in self.shards:  # all are looked for before the first is read
            if not shard.is_file():
                raise FileNotFoundError(f"shard {shard} does not exist")
        indices = [open_index(shard, label_key=label_key, keep=keep_index) for shard in self.shards]
        self._shard_of = np.repeat(np.arange(len(indices), dtype=np.int32), [len(i.labels) for i in indices])
        self._names = np.concatenate([index.names for index in indices])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self.labels = np.concatenate([index.labels for index in indices])
        if not len(self.labels):
            raise ValueError(f"{path} holds no images")
        if (self.labels == NO_LABEL).all():
            keys = label_key or ", ".join(LABEL_KEYS)
            raise ValueError(f"{path} has no labels: expected .cls members, or .json members with {keys}")
        self.class_names = self._choose_names(num_classes, class_names)

    def _choose_names(self, num_classes: int | None, class_names: list[str] | None) -> list[str]:
        count = (
            num_classes if num_classes is not None else len(class_names or []) or int(self.labels.max()) + 1
        )
        if class_names is not None and len(class_names) != count:
            raise ValueError(f"class_names has {len(class_names)} names, but num_classes={num_classes}")
        largest = int(self.labels.argmax())
        if self.labels[largest] >= count:
            raise ValueError(
                f"{self.name(largest)} has label {self.labels[largest]}, but there are {count} classes"
            )
        return list(class_names or map(str, range(count)))

    def name(self, index: int) -> str:
        """Shard and member of an example."""
        return f"{self.shards[self._shard_of[index]]}: {os.fsdecode(self._names[index])}"

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        """Return (uint8 [3, H, W], label)."""
        if self.labels[index] == NO_LABEL:
            raise CorruptSample(self.name(index), "no readable label")
        try:
            with open(self.shards[self._shard_of[index]], "rb", buffering=0) as file:
                content = os.pread(file.fileno(), int(self._sizes[index]), int(self._offsets[index]))
        except OSError as error:
            raise CorruptSample(self.name(index), str(error)) from error
        return self.transform(decode_image(content, self.name(index)), rng), int(self.labels[index])


def expand_shards(path: str | list[str]) -> list[Path]:
    """Shards named by one or several brace patterns.

    Raises:
        ValueError: a pattern's braces do not match.
    """
    patterns = [path] if isinstance(path, str) else path
    try:
        shards = [Path(shard).expanduser() for pattern in patterns for shard in braceexpand(pattern)]
    except UnbalancedBracesError as error:
        raise ValueError(f"path={path!r}: braces do not match") from error
    if not shards:
        raise ValueError("path=[] names no shard")
    return shards
