"""Images divided into those to train on and those held out, so that no picture is on both sides in two versions."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.choices import Classes
from common.console import progress
from common.images import UnreadableImage
from data.image_folder import NO_CLASS, check_classes, folder_class_names
from data.image_list import examples_of
from data.near_duplicates import Look, Looks, group_alike, look_at
from data.source import ONE_CLASS
from storage.image_lists import LIST_SUFFIXES, read_image_list, write_image_list
from storage.image_names import IMAGE_SUFFIXES
from storage.image_tree import find_images
from storage.left_out import LeftOut

ENOUGH = 5  # images of a class, of which one is held out
_CHUNK = 1024  # files at a time: bounds what waits for the threads


class _Found(NamedTuple):
    """Images and their classes."""

    root: Path  # where paths start
    paths: list[str]
    labels: list[int]
    class_names: list[str]
    captions: list[str] | None
    left_out: LeftOut


@dataclass(frozen=True)
class Split:
    """Which images are held out.

    Args:
        root: folder where paths start.
        paths: of the readable images, sorted; with several captions an image is there several times.
        labels: int64 [n], positions in ``class_names``.
        class_names: in the order of the folder or list; every one has a training image.
        captions: texts, or None.
        held_out: bool [n], those for validation.
        groups: int64 [n], equal for pictures that are nearly the same.
        left_out: what is no example, or cannot be read.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    class_names: list[str]
    captions: list[str] | None
    held_out: np.ndarray
    groups: np.ndarray
    left_out: LeftOut

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``train.csv`` and ``validation.csv``; returns their paths. Raises WriteError.

        They are trained from by ``{name: image_list, path: ..., images: root, class_names: class_names}``.
        """
        columns = ["path", "class"] if self.captions is None else ["path", "class", "caption"]
        rows = [[path, self.class_names[label]] for path, label in zip(self.paths, self.labels, strict=True)]
        if self.captions is not None:
            rows = [[*row, caption] for row, caption in zip(rows, self.captions, strict=True)]
        places = Path(folder) / "train.csv", Path(folder) / "validation.csv"
        for place, side in zip(places, (False, True), strict=True):
            chosen = [row for row, held_out in zip(rows, self.held_out, strict=True) if held_out == side]
            write_image_list(place, chosen, columns)
        return places

    def lines(self) -> list[str]:
        """What was done, for people."""
        held_out, sizes = int(self.held_out.sum()), np.bincount(self.groups)
        classes = f" of {len(self.class_names)} classes" if len(self.class_names) > 1 else ""
        lines = [f"{len(self.paths) - held_out} images{classes} to train on, {held_out} held out"]
        if (sizes > 1).any():
            lines.append(
                f"{int(sizes[sizes > 1].sum())} images are nearly the same as another one, in {int((sizes > 1).sum())}"
                " groups; each group is on one side"
            )
        return lines


def split_images(
    images: str | Path,
    *,
    share: float = 0.1,
    most: int | None = None,
    seed: int = 0,
    classes: Classes = "folders",
    root: str | Path | None = None,
    workers: int | None = None,
) -> Split:
    """Divide images into training and validation.

    Groups of pictures that are nearly the same (``data.near_duplicates``) are on one side. They are drawn by a hash of
    the seed and their first path, and held out while no class has more than its share. Of a class of ENOUGH images at
    least one is held out, unless a group has more than half of them. The result depends on the files below the folder,
    their names and the seed only.

    Args:
        images: a folder, or a list (``storage.image_lists``).
        share: of the images of every class that is held out.
        most: images that are held out at most, over all classes.
        classes: "folders": the folders right below ``images`` are the classes, and images beside them are left out; a
            folder without such folders has one class. "one": all images at any depth are of one class. Of a list,
            "one" ignores the labels.
        root: folder where the paths of a list start; its own if None.
        workers: threads that decode; one per processor, at most 8, if None.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: an option is out of range, the list cannot be read, or there are fewer than two different images.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} must be between 0 and 1")
    if most is not None and most < 1:
        raise ValueError(f"most={most} must be at least 1")
    check_classes(classes)
    found = _find(Path(images), classes, None if root is None else Path(root))
    found, groups = _look_at_all(found, workers)
    labels = np.array(found.labels, dtype=np.int64)
    if len(np.unique(groups)) < 2:
        why = found.left_out.explain()
        raise ValueError(
            f"{images} has {len(groups)} images that are all nearly the same; two different ones are needed{why}"
        )
    most = len(groups) if most is None else most
    drawn = sorted(_members(groups), key=lambda rows: _draw(seed, found.paths[rows[0]]))
    held_out = _hold_out(labels, drawn, share=min(share, most / len(groups)), most=most)
    if not held_out.any():
        raise ValueError(f"{images} has too few different images of every class to hold one out")
    return Split(
        found.root, found.paths, labels, found.class_names, found.captions, held_out, groups, found.left_out
    )


def _find(images: Path, classes: Classes, root: Path | None) -> _Found:
    if images.suffix.lower() in LIST_SUFFIXES and not images.is_dir():
        listed = read_image_list(images)
        if classes == "one":
            listed = listed._replace(has_labels=False)
        root = images.parent if root is None else root
        found = examples_of(listed, root)
        order = sorted(range(len(found.rows)), key=lambda i: found.rows[i].path)
        captions = [found.rows[i].caption or "" for i in order] if listed.has_captions else None
        paths, labels = [found.rows[i].path for i in order], [int(found.labels[i]) for i in order]
        return _Found(root, paths, labels, found.class_names, captions, found.left_out)
    files, folders, left_out = find_images(images)
    if classes == "folders" and any("/" in file for file in files):
        for file in files:
            if "/" not in file:
                left_out.add(NO_CLASS, file)
        files = [file for file in files if "/" in file]
        names = folder_class_names(images, folders)
        number = {folder: i for i, folder in enumerate(folders)}
        labels = [number[file.partition("/")[0]] for file in files]
    else:
        names, labels = [ONE_CLASS], [0] * len(files)
    if not files:
        raise ValueError(f"{images} holds no image ({', '.join(IMAGE_SUFFIXES)}){left_out.explain()}")
    return _Found(images, files, labels, names, None, left_out)


def _look_at_all(found: _Found, workers: int | None) -> tuple[_Found, np.ndarray]:
    """Those that can be read, with classes that have one, and the groups of pictures that are nearly the same."""
    names = list(dict.fromkeys(found.paths))  # an image may have several captions
    looks: dict[str, Look] = {}
    bar = progress(None, "looking for near-duplicates", total=len(names), unit="image", delay=2.0)
    with ThreadPoolExecutor(workers or max(1, min(8, os.cpu_count() or 1))) as pool:
        for start in range(0, len(names), _CHUNK):
            chunk = names[start : start + _CHUNK]
            for name, seen in zip(chunk, pool.map(_look, [found.root / name for name in chunk]), strict=True):
                if isinstance(seen, Look):
                    looks[name] = seen
                else:
                    found.left_out.add_error(seen, name)
                bar.update(1)
    bar.close()
    kept = [i for i, path in enumerate(found.paths) if path in looks]
    if not kept:
        raise ValueError(f"{found.root} has no image that can be read{found.left_out.explain()}")
    numbers = {label: i for i, label in enumerate(sorted({found.labels[i] for i in kept}))}
    place = {name: i for i, name in enumerate(looks)}
    groups = group_alike(Looks(*(np.array(values) for values in zip(*looks.values(), strict=True))))
    found = found._replace(
        paths=[found.paths[i] for i in kept],
        labels=[numbers[found.labels[i]] for i in kept],
        class_names=[found.class_names[label] for label in numbers],
        captions=None if found.captions is None else [found.captions[i] for i in kept],
    )
    _, groups = np.unique(groups[[place[path] for path in found.paths]], return_inverse=True)
    return found, groups.astype(np.int64)


def _look(file: Path) -> Look | str:
    try:
        return look_at(file.read_bytes())
    except (UnreadableImage, OSError) as error:
        return str(error)


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """Indices of each group, in order."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _draw(seed: int, path: str) -> bytes:
    return hashlib.blake2b(os.fsencode(path), digest_size=16, salt=f"{seed}".encode()[:16]).digest()


def _hold_out(labels: np.ndarray, drawn: list[np.ndarray], *, share: float, most: int) -> np.ndarray:
    """Which images are held out, bool [n]; ``drawn`` are the groups in the order in which they are asked."""
    counts = np.bincount(labels)
    wanted = np.maximum(np.round(share * counts).astype(np.int64), counts >= ENOUGH)
    wanted = np.minimum(wanted, np.maximum(counts - 1, 0))
    held, held_out = np.zeros_like(counts), np.zeros(len(labels), dtype=bool)

    def take(rows: np.ndarray, limits: np.ndarray) -> None:
        new = np.bincount(labels[rows], minlength=len(counts))
        if ((held + new <= limits) | (new == 0)).all() and held.sum() + len(rows) <= most:
            held[:] += new
            held_out[rows] = True

    for rows in drawn:
        take(rows, wanted)
    smallest_first = sorted(drawn, key=len)
    for label in np.flatnonzero((wanted > 0) & (held == 0)):  # all its groups are larger than its share
        for rows in smallest_first:
            if not held[label] and label in labels[rows]:
                take(rows, counts // 2)
    for rows in smallest_first:
        if not held.any():
            take(rows, np.maximum(counts - 1, 0))
    return held_out
