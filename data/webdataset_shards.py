"""Tar shards in the webdataset layout, read at random places.

A sample is an image member and a label member with the same name before the first dot: ``.cls`` holds the class number
as text, ``.json`` holds it under ``label``, ``cls``, ``class_id`` or ``class``. A ``.txt`` member is its caption, UTF-8
(``storage.tar_samples`` has all rules). Shards are indexed once, so that any sample can be read by its position:
shuffling is global and a run resumes anywhere. Remote shards are fetched whole into a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from common.choices import Alpha, Orientation, Resize
from common.console import printable
from data.order import FullShuffle, Order, WindowShuffle
from data.sample_index import open_samples
from data.shard_cache import ShardCache
from data.shards import Shards
from data.source import MOST_SHUFFLED_AT_ONCE, ONE_CLASS, CorruptSample, Source, count_classes
from data.tar_index import NO_CAPTION, NO_LABEL
from data.transforms import ImageTransform
from storage.files import user_cache_folder
from storage.left_out import LeftOut
from storage.shard_paths import expand_shards
from storage.tar_samples import CONFLICT, LABEL_KEYS


class WebDataset(Source):
    """Images of tar shards, opened by all processes together; the other options are those of ``ImageTransform``.

    Args:
        path: shards as a brace pattern, e.g. ``imagenet-train-{0000..0252}.tar``, or a list of patterns; folders of
            shards, paths or URLs (``s3://``, ``gs://``, ``https://``, ``hf://datasets/...``, and other protocols of
            fsspec).
        label_key: key of the label in ``.json`` members, if it is another than those above; ``.cls`` members are then
            not looked at.
        num_classes: one more than the largest label found if None. With 1, labels are not looked at and may be missing:
            for training that does not use them.
        class_names: a name per class; the numbers if None.
        captions: deliver captions; a sample without one counts as corrupt. Labels may then be missing from all
            samples: they are 0, of a class named "image".
        max_aspect: leave out images whose longer side was more than this many times the shorter one, at least 1.
        min_side: leave out images whose LONGER side was less than this many pixels, the rule that the data of the
            released text-aware tokenizers were chosen by. Both limits need ``original_height`` and
            ``original_width`` in the ``.json`` members; images without them are left out.
        keep_index: keep the index beside each shard, and that of all together beside the first, or in the user's cache
            folder if that is read-only. If false, every process holds its own in memory.
        shuffle: ``full`` permutes all examples of an epoch; ``windows`` permutes the shards, then the examples of
            ``shuffle_window`` shards at a time. ``auto`` is ``windows`` for remote shards and above 2^24 examples.
        shuffle_window: shards whose examples are mixed by ``windows``.
        cache: folder for remote shards, on a local disk; ``remote_shards`` in the user's cache folder if None.
        cache_gigabytes: most that remote shards take there, 10^9 bytes.

    Raises:
        FileNotFoundError: a local shard does not exist.
        RemoteError: a remote one cannot be fetched.
        ValueError: a shard is cut short or is no tar file; there are no images, or none within the limits; there
            are no labels, or larger labels than classes; ``captions`` is true and there are none; the cache is too
            small.
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
        alpha: Alpha = "white",
        orientation: Orientation = "stored",
        label_key: str | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        captions: bool = False,
        max_aspect: float | None = None,
        min_side: int | None = None,
        keep_index: bool = True,
        shuffle: Literal["auto", "full", "windows"] = "auto",
        shuffle_window: int = 32,
        cache: Path | None = None,
        cache_gigabytes: float = 200.0,
    ) -> None:
        limits = {"max_aspect": max_aspect, "min_side": min_side}
        for key, value in {**limits, "shuffle_window": shuffle_window}.items():
            if value is not None and not value >= 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if not cache_gigabytes > 0:
            raise ValueError(f"cache_gigabytes={cache_gigabytes} must be more than 0")
        self.transform = ImageTransform(
            image_size=image_size,
            resize_shorter_edge=resize_shorter_edge,
            resize=resize,
            random_crop=random_crop,
            random_flip=random_flip,
            random_area=random_area,
            alpha=alpha,
            orientation=orientation,
        )
        self.item_shape, self.rules = (3, image_size, image_size), self.transform.rules
        folder = user_cache_folder() / "remote_shards" if cache is None else Path(cache)
        self._shards = Shards(
            expand_shards(path),
            # An open shard stays in the cache: those of this window and of the last one.
            cache=ShardCache(folder, cache_gigabytes, open_shards=2 * shuffle_window),
            label_key=label_key,
            keep_index=keep_index,
        )
        self._index = open_samples(self._shards, keep=keep_index, **limits)
        self.has_captions = captions
        self._check_samples(path, num_classes, f"max_aspect={max_aspect}, min_side={min_side}")
        self.class_names = self._choose_names(num_classes, class_names)
        large = self._shards.any_remote or len(self) > MOST_SHUFFLED_AT_ONCE
        self._window = shuffle_window if shuffle == "windows" or (shuffle == "auto" and large) else None
        if self._shards.any_remote:
            self._check_cache(shuffle_window, cache_gigabytes)

    def _check_samples(self, path: str | list[str], num_classes: int | None, limits: str) -> None:
        """Raise ValueError for what is missing; note what is left out, and whether labels are used."""
        facts, self.left_out = self._index.facts, LeftOut()
        self.left_out.extend(facts.notes.left_out)
        if not facts.images:
            raise ValueError(f"{path} holds no images{self.left_out.explain()}")
        if not facts.count:
            raise ValueError(
                f"{path} holds no images within {limits} (original_height and original_width in .json members)"
            )
        if facts.count < facts.images:
            self.left_out.add(f"not within {limits}", count=facts.images - facts.count)
        if self.has_captions and not facts.captioned:
            raise ValueError(f"{path} has no captions: expected .txt members")
        self._one_class = num_classes == 1 or not facts.labelled
        if num_classes == 1:
            return
        if facts.notes.conflicts:
            count, names = facts.notes.conflicts.to_tree()[CONFLICT]
            raise ValueError(
                f"{path}: the labels of {count} samples disagree, first those of {printable(names[0])};"
                " label_key=... chooses the .json members, num_classes=1 does without labels"
            )
        if facts.labelled:
            self.left_out.extend(facts.notes.unlabelled)
        elif not self.has_captions:  # those without labels are for models that read captions
            key = self._shards.label_key
            keys = f".cls members, or .json members with {', '.join(LABEL_KEYS)}"
            keys = f".json members with {key}" if key else keys
            why = facts.notes.unlabelled.explain()
            raise ValueError(f"{path} has no labels: expected {keys}; num_classes=1 does without{why}")

    def _check_cache(self, window: int, gigabytes: float) -> None:
        # Read at one time: the window before, by slow workers, this one, and in the background the next.
        facts = self._index.facts
        needed = facts.shard_bytes if self._window is None else 3 * window * facts.largest_shard
        needed = min(needed, facts.shard_bytes) / 1e9
        if needed > gigabytes:
            what = (
                f"three windows of shuffle_window={window} shards of up to {facts.largest_shard / 1e9:.3g} GB"
            )
            what = "shuffle='full', which reads all shards at all times," if self._window is None else what
            raise ValueError(f"cache_gigabytes={gigabytes:g} is too small: {what} need {needed:.4g}")

    def _choose_names(self, num_classes: int | None, class_names: list[str] | None) -> list[str]:
        facts = self._index.facts
        if num_classes is None and not facts.labelled:
            class_names = class_names or [ONE_CLASS]
        largest = 0 if self._one_class else facts.largest_label
        where = partial(self.name, facts.largest_at)
        count = count_classes(num_classes, class_names or None, largest=largest, where=where)
        return list(class_names or map(str, range(count)))

    def __len__(self) -> int:
        return self._index.facts.count

    @property
    def labels(self) -> np.ndarray:  # not kept: a pickled memory map would carry all labels along
        if self._one_class:
            return np.broadcast_to(np.int64(0), len(self))
        return self._index.labels

    def order(self, seed: int) -> Order:
        if self._window is None:
            return FullShuffle(len(self), seed=seed)
        return WindowShuffle(
            self._index.starts, window=self._window, seed=seed, on_window=self._shards.expect
        )

    def name(self, index: int) -> str:
        """Shard and member of an example."""
        return self._shards.name(self._index.shard_of(index), int(self._index.offsets[index]))

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        label = int(self.labels[index])
        if label == NO_LABEL:
            raise CorruptSample(self.name(index), "no readable label")
        if self.has_captions:
            self._caption(index)  # an image without its caption counts as unreadable
        content = self._read(index, self._index.offsets, self._index.sizes)
        try:
            return self.transform.read(content, "", rng), label
        except CorruptSample as error:  # its name is looked up only when it is needed
            raise CorruptSample(self.name(index), error.reason) from error

    def file(self, index: int) -> tuple[str, bytes]:
        return self.name(index), self._read(index, self._index.offsets, self._index.sizes)

    def captions(self, indices: Sequence[int]) -> list[str]:
        if not self.has_captions:
            return super().captions(indices)
        return [self._caption(int(index)) for index in indices]

    def _caption(self, index: int) -> str:
        if self._index.caption_offsets[index] == NO_CAPTION:
            raise CorruptSample(self.name(index), "no caption")
        try:
            content = self._read(index, self._index.caption_offsets, self._index.caption_sizes)
            return content.decode("utf-8-sig").strip()  # some editors begin a file with a mark
        except UnicodeDecodeError as error:
            raise CorruptSample(self.name(index), "its caption is not UTF-8") from error

    def _read(self, index: int, offsets: np.ndarray, sizes: np.ndarray) -> bytes:
        shard = self._index.shard_of(index)
        try:
            return self._shards.read(shard, int(offsets[index]), int(sizes[index]))
        except OSError as error:
            raise CorruptSample(self.name(index), str(error)) from error
