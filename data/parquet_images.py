"""Images in parquet files: local or remote files, or a data set of the Hugging Face Hub by its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from glob import glob
from pathlib import Path

import numpy as np
import torch

from common import distributed
from common.choices import Alpha, Orientation, Resize
from data.hub_files import hub_parquet, split_of
from data.order import Order, WindowShuffle
from data.parquet_facts import Columns
from data.parquet_rows import ParquetRows
from data.shard_cache import ShardCache
from data.source import ONE_CLASS, CorruptSample, Source, count_classes
from data.tar_index import NO_LABEL
from data.transforms import ImageTransform
from storage.files import user_cache_folder
from storage.remote_files import RemoteError, is_remote, require_readable, version_of
from storage.shard_paths import expand_braces
from storage.tar_members import read_shards


class ParquetImages(Source):
    """Rows of parquet files, opened by all processes together; the other options are those of ``ImageTransform``.

    Args:
        path: a file, a folder of them, a pattern with ``*`` or braces, or a list of these; paths or URLs.
        image_column: images as they are in files: binary, or a struct of ``bytes`` and ``path``.
        label_column: class numbers; null if there are none, and all images are of a class named "image".
        caption_column: texts; null for no captions. A row without one counts as corrupt.
        num_classes: one more than the largest label found if None, or the number of names.
        class_names: a name per class; those in the files, else the numbers, if None.
        shuffle_window: row groups whose examples are mixed; fewer if they do not fit into ``memory_megabytes``.
        memory_megabytes: most that row groups take in each process and data worker, 10^6 bytes.
        cache: folder for remote files, on a local disk; ``remote_shards`` in the user's cache folder if None.
        cache_gigabytes: most that remote files take there, 10^9 bytes. All of them must fit, because a window holds
            row groups of many files.

    Raises:
        FileNotFoundError: no file fits the path.
        RemoteError: a remote file cannot be fetched.
        ValueError: pyarrow is missing; a file is damaged; a column is missing or of another type; there are no rows, no
            labels, or larger ones than classes; a row group does not fit into the memory, or all files into the cache.
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
        image_column: str = "image",
        label_column: str | None = "label",
        caption_column: str | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        shuffle_window: int = 32,
        memory_megabytes: float = 1000.0,
        cache: Path | None = None,
        cache_gigabytes: float = 200.0,
    ) -> None:
        if shuffle_window < 1:
            raise ValueError(f"shuffle_window={shuffle_window} must be at least 1")
        for key, value in {"memory_megabytes": memory_megabytes, "cache_gigabytes": cache_gigabytes}.items():
            if not value > 0:
                raise ValueError(f"{key}={value} must be more than 0")
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
        paths, memory = parquet_paths(path), int(memory_megabytes * 1e6)
        folder = user_cache_folder() / "remote_shards" if cache is None else Path(cache).expanduser()
        store = ShardCache(folder, cache_gigabytes)
        distributed.on_local_main(lambda: _check_cache(paths, store))
        columns = Columns(image_column, label_column, caption_column)
        self._rows = ParquetRows(paths, columns, cache=store, memory=memory)
        if not len(self._rows):
            raise ValueError(f"{path} holds no rows")
        self._window = min(shuffle_window, max(1, memory // max(1, self._rows.largest_group)))
        self.has_captions = caption_column is not None
        self.labels = self._rows.labels
        labelled = label_column is not None and num_classes != 1
        if not labelled:
            self.labels = np.broadcast_to(np.int64(0), len(self._rows))
        elif self.labels.max() == NO_LABEL:
            raise ValueError(
                f"{path} has no labels in column {label_column!r}; label_column=null does without"
            )
        names = class_names or (self._rows.class_names if labelled else None)
        self.class_names = self._choose_names(num_classes if labelled else 1, names, labelled)

    def _choose_names(self, num_classes: int | None, names: list[str] | None, labelled: bool) -> list[str]:
        largest = int(self.labels.max())
        where = partial(self._rows.name, int(self.labels.argmax()))
        count = count_classes(num_classes, names, largest=largest, where=where)
        return list(names or (map(str, range(count)) if labelled else [ONE_CLASS]))

    def order(self, seed: int) -> Order:
        return WindowShuffle(self._rows.starts, window=self._window, seed=seed, on_window=self._rows.expect)

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        label = int(self.labels[index])
        if label == NO_LABEL:
            raise CorruptSample(self._rows.name(index), "no label")
        row = self._rows.read(index)
        if self.has_captions and row.caption is None:
            raise CorruptSample(self._rows.name(index), "no caption")
        return self.transform.read(row.content, self._rows.name(index), rng), label

    def file(self, index: int) -> tuple[str, bytes]:
        return self._rows.name(index), self._rows.read(index).content

    def captions(self, indices: Sequence[int]) -> list[str]:
        if not self.has_captions:
            return super().captions(indices)
        return [(self._rows.read(int(index)).caption or "").strip() for index in indices]


class HubImages(ParquetImages):
    """A data set of the Hugging Face Hub, by its parquet files; the other options are those of ``ParquetImages``.

    Args:
        dataset: ``USER/NAME``.
        split: as the Hub calls it.
        subset: which one (the Hub says configuration), if there are several.
        revision: branch, tag or commit; name a commit, so that a run resumes with the same files.
    """

    def __init__(
        self,
        *,
        dataset: str,
        image_size: int,
        split: str = "train",
        subset: str | None = None,
        revision: str | None = None,
        resize_shorter_edge: int | None = None,
        resize: Resize = "shorter_edge",
        random_crop: bool = False,
        random_flip: bool = False,
        random_area: float = 0.0,
        alpha: Alpha = "white",
        orientation: Orientation = "stored",
        image_column: str = "image",
        label_column: str | None = "label",
        caption_column: str | None = None,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        shuffle_window: int = 32,
        memory_megabytes: float = 1000.0,
        cache: Path | None = None,
        cache_gigabytes: float = 200.0,
    ) -> None:
        def ask() -> list[str]:
            return hub_parquet(dataset, split=split, subset=subset, revision=revision)

        super().__init__(
            path=distributed.on_main(ask),
            image_size=image_size,
            resize_shorter_edge=resize_shorter_edge,
            resize=resize,
            random_crop=random_crop,
            random_flip=random_flip,
            random_area=random_area,
            alpha=alpha,
            orientation=orientation,
            image_column=image_column,
            label_column=label_column,
            caption_column=caption_column,
            num_classes=num_classes,
            class_names=class_names,
            shuffle_window=shuffle_window,
            memory_megabytes=memory_megabytes,
            cache=cache,
            cache_gigabytes=cache_gigabytes,
        )


def parquet_paths(path: str | list[str]) -> list[str]:
    """Files and URLs that a path names, see ``ParquetImages``; the files of a folder or of ``*`` are sorted.

    Raises:
        FileNotFoundError: a pattern fits no file, or a folder holds none.
        ValueError: a folder holds files of several splits.
    """
    found: list[str] = []
    for name in expand_braces(path):
        if is_remote(name):
            found.append(name)
        elif os.path.isdir(name):
            found += _in_folder(name)
        elif any(mark in name for mark in "*?["):
            matches = sorted(glob(name, recursive=True))
            if not matches:
                raise FileNotFoundError(f"no file fits path={name}")
            found += matches
        else:
            found.append(name)
    return found


def _in_folder(folder: str) -> list[str]:
    files = sorted(str(file) for file in Path(folder).rglob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"folder {folder} holds no .parquet file")
    splits = sorted({split_of(os.path.relpath(file, folder))[1] for file in files} & _SPLITS)
    if len(splits) > 1:  # training on the validation images would not be noticed
        raise ValueError(
            f"folder {folder} holds files of several splits ({', '.join(splits)}); write a pattern, such as"
            f" {folder}/**/{splits[0]}-*.parquet"
        )
    return files


_SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test"}


def _size(url: str, cache: ShardCache) -> int:
    try:
        return (cache.known_version(url) or version_of(url)).size
    except RemoteError:
        raise
    except Exception as error:  # of the network, in whatever class a library has put it
        raise RemoteError(f"{url} cannot be reached: {error}") from error


def _check_cache(paths: Sequence[str], cache: ShardCache) -> None:
    """Raise ValueError, before anything is fetched, if the cache cannot hold all remote files."""
    remote = [path for path in paths if is_remote(path)]
    for url in remote[:1]:
        require_readable(url)
    sizes = read_shards(lambda url: _size(url, cache), remote)
    total = 0
    for size in sizes:
        total += size
    if total > cache.gigabytes * 1e9:
        raise RemoteError(
            f"cache_gigabytes={cache.gigabytes:g} is too small: the {len(remote)} parquet files take"
            f" {total / 1e9:.4g} GB, and every window of examples reads from many of them; allow more, or make shards"
            " with scripts/prepare_data.py"
        )
