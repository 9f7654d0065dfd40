"""Tar shards in the webdataset layout, read at random places.

A sample is an image member (``.jpg``, ``.jpeg``, ``.png`` or ``.webp``) and a label member with the same name before
the first dot: ``.cls`` holds the class number as text, ``.json`` holds it under ``label``, ``cls``, ``class_id`` or
``class``. A ``.txt`` member is its caption, UTF-8. Shards are indexed once, so that any sample can be read by its
position: shuffling is global and a run resumes anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from braceexpand import UnbalancedBracesError, braceexpand

from data.source import CorruptSample, Source
from data.tar_index import LABEL_KEYS, NO_CAPTION, NO_LABEL, ShardIndex, open_index
from data.transforms import ImageTransform, Resize, decode_image


class WebDataset(Source):
    """Images of local tar shards; the other options are those of ``ImageTransform``.

    Args:
        path: shards as a brace pattern, e.g. ``imagenet-train-{0000..0252}.tar``, or a list of patterns.
        label_key: key of the label in ``.json`` members, if it is another than those above.
        num_classes: one more than the largest label found if None. With 1, labels are not looked at and may be missing:
            for training that does not use them.
        class_names: a name per class; the numbers if None.
        captions: deliver captions; a sample without one counts as corrupt. Labels may then be missing from all
            samples: they are 0, of a class named "image".
        max_aspect: leave out images whose longer side was more than this many times the shorter one, at least 1.
        min_side: leave out images whose LONGER side was less than this many pixels, the rule that the data of the
            released text-aware tokenizers were chosen by. Both limits need ``original_height`` and
            ``original_width`` in the ``.json`` members; images without them are left out.
        keep_index: keep the index beside each shard, or in the user's cache folder if that is read-only.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard is cut short or is no tar file; there are no images, or none within the limits; there
            are no labels, or larger labels than classes; ``captions`` is true and there are none.
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
        random_area: float = 0.0,
        label_key: str | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        captions: bool = False,
        max_aspect: float | None = None,
        min_side: int | None = None,
        keep_index: bool = True,
    ) -> None:
        _check_limits(max_aspect, min_side)
        self.transform = ImageTransform(
            image_size=image_size,
            resize_shorter_edge=resize_shorter_edge,
            resize=resize,
            random_crop=random_crop,
            random_flip=random_flip,
            random_area=random_area,
        )
        self.item_shape = (3, image_size, image_size)
        self.shards = expand_shards(path)
        for shard in self.shards:  # all are looked for before the first is read
            if not shard.is_file():
                raise FileNotFoundError(f"shard {shard} does not exist")
        indices = [open_index(shard, label_key=label_key, keep=keep_index) for shard in self.shards]
        if not any(len(index.labels) for index in indices):
            raise ValueError(f"{path} holds no images")
        if max_aspect is not None or min_side is not None:
            indices = [index.part(_within(index, max_aspect, min_side)) for index in indices]
        self._shard_of = np.repeat(np.arange(len(indices), dtype=np.int32), [len(i.labels) for i in indices])
        self._names = np.concatenate([index.names for index in indices])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self.labels = np.concatenate([index.labels for index in indices])
        if not len(self.labels):
            raise ValueError(
                f"{path} holds no images within max_aspect={max_aspect}, min_side={min_side}"
                " (original_height and original_width in .json members)"
            )
        self.has_captions = captions
        if captions:
            self._caption_offsets = np.concatenate([index.caption_offsets for index in indices])
            self._caption_sizes = np.concatenate([index.caption_sizes for index in indices])
            if (self._caption_offsets == NO_CAPTION).all():
                raise ValueError(f"{path} has no captions: expected .txt members")
        if num_classes == 1:
            self.labels = np.zeros_like(self.labels)
        if (self.labels == NO_LABEL).all():
            self._require_captions(path, label_key)
            self.labels = np.zeros_like(self.labels)
            class_names = class_names or (["image"] if num_classes is None else None)
        self.class_names = self._choose_names(num_classes, class_names)

    def _require_captions(self, path: str | list[str], label_key: str | None) -> None:
        """Shards without labels are for models that read captions."""
        if not self.has_captions:
            keys = label_key or ", ".join(LABEL_KEYS)
            raise ValueError(
                f"{path} has no labels: expected .cls members, or .json members with {keys}; num_classes=1 does"
                " without"
            )

    def _choose_names(self, num_classes: int | None, class_names: list[str] | None) -> list[str]:
        found = len(class_names or []) or int(self.labels.max()) + 1
        count = found if num_classes is None else num_classes
        if class_names is not None and len(class_names) != count:
            raise ValueError(f"class_names has {len(class_names)} names, but num_classes={num_classes}")
        largest = int(self.labels.argmax())
        if self.labels[largest] >= count:
            label = self.labels[largest]
            raise ValueError(f"{self.name(largest)} has label {label}, but there are {count} classes")
        return list(class_names or map(str, range(count)))

    def name(self, index: int) -> str:
        """Shard and member of an example."""
        return f"{self.shards[self._shard_of[index]]}: {os.fsdecode(self._names[index])}"

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        if self.labels[index] == NO_LABEL:
            raise CorruptSample(self.name(index), "no readable label")
        if self.has_captions:
            self._caption(index)  # an image without its caption counts as unreadable
        content = self._read(index, int(self._offsets[index]), int(self._sizes[index]))
        return self.transform(decode_image(content, self.name(index)), rng), int(self.labels[index])

    def captions(self, indices: Sequence[int]) -> list[str]:
        if not self.has_captions:
            return super().captions(indices)
        return [self._caption(int(index)) for index in indices]

    def _caption(self, index: int) -> str:
        offset = int(self._caption_offsets[index])
        if offset == NO_CAPTION:
            raise CorruptSample(self.name(index), "no caption")
        try:
            return self._read(index, offset, int(self._caption_sizes[index])).decode().strip()
        except UnicodeDecodeError as error:
            raise CorruptSample(self.name(index), "its caption is not UTF-8") from error

    def _read(self, index: int, offset: int, size: int) -> bytes:
        try:
            with open(self.shards[self._shard_of[index]], "rb", buffering=0) as file:
                return os.pread(file.fileno(), size, offset)  # opened anew: workers share no position
        except OSError as error:
            raise CorruptSample(self.name(index), str(error)) from error


def _check_limits(max_aspect: float | None, min_side: int | None) -> None:
    for key, value in (("max_aspect", max_aspect), ("min_side", min_side)):
        if value is not None and not value >= 1:
            raise ValueError(f"{key}={value} must be at least 1")


def _within(index: ShardIndex, max_aspect: float | None, min_side: int | None) -> np.ndarray:
    longer, shorter = np.maximum(index.heights, index.widths), np.minimum(index.heights, index.widths)
    kept = shorter > 0  # the size is known
    if max_aspect is not None:
        kept &= longer <= max_aspect * shorter
    if min_side is not None:
        kept &= longer >= min_side
    return kept


def expand_shards(path: str | list[str]) -> list[Path]:
    """Shards named by one or several brace patterns. Raises ValueError if braces do not match."""
    patterns = [path] if isinstance(path, str) else path
    try:
        shards = [Path(shard).expanduser() for pattern in patterns for shard in braceexpand(pattern)]
    except UnbalancedBracesError as error:
        raise ValueError(f"path={path!r}: braces do not match") from error
    if not shards:
        raise ValueError("path=[] names no shard")
    return shards
