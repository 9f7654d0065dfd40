"""Images in one folder per class, or of one class in any folders."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from common.choices import Alpha, Classes, Orientation, Resize
from common.console import printable, warn
from data.source import ONE_CLASS, CorruptSample, Source
from data.transforms import ImageTransform
from storage.image_names import IMAGE_SUFFIXES
from storage.image_tree import ImageTree, find_images

NO_CLASS = "beside the class folders, so of no class"


class ImageFolder(Source):
    """Images at any depth below a folder, with or without classes.

    What is an image says ``storage.image_tree``. The other options are those of ``ImageTransform``.

    Args:
        path: the folder.
        classes: "folders": the folders right below ``path`` are the classes, sorted as text, and images beside them
            are left out. "one": all images are of one class, wherever they lie.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: there is no image, or with "folders" no class folder, or one of them holds no image.
        OSError: a folder cannot be listed.
    """

    item_key = "images"

    def __init__(
        self,
        *,
        path: Path,
        image_size: int,
        classes: Classes = "folders",
        resize_shorter_edge: int | None = None,
        resize: Resize = "shorter_edge",
        random_crop: bool = False,
        random_flip: bool = False,
        random_area: float = 0.0,
        alpha: Alpha = "white",
        orientation: Orientation = "stored",
    ) -> None:
        self.path = Path(path)
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
        check_classes(classes)
        tree = find_images(self.path)
        self.left_out = tree.left_out
        found = self._by_folder(tree) if classes == "folders" else self._as_one(tree)
        self.class_names = [name for name, _ in found]
        # Bytes in one block: a list of a million strings would be copied into every worker as it is read.
        self._files = np.array([os.fsencode(file) for _, files in found for file in files])
        counts = [len(files) for _, files in found]
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def _as_one(self, tree: ImageTree) -> list[tuple[str, list[str]]]:
        if not tree.files:
            why = tree.left_out.explain()
            raise ValueError(f"image folder {self.path} holds no image ({', '.join(IMAGE_SUFFIXES)}){why}")
        return [(ONE_CLASS, tree.files)]

    def _by_folder(self, tree: ImageTree) -> list[tuple[str, list[str]]]:
        """Names of the classes, and their files."""
        if not tree.folders:
            if tree.files:
                raise ValueError(
                    f"image folder {self.path} has no labels: its images must lie in one subfolder per class;"
                    " classes=one does without"
                )
            why = tree.left_out.explain()
            raise ValueError(
                f"image folder {self.path} is empty: it must hold one subfolder of images per class{why}"
            )
        classes: dict[str, list[str]] = {folder: [] for folder in tree.folders}
        for file in tree.files:
            folder, slash, _ = file.partition("/")
            if slash:
                classes[folder].append(file)
            else:
                tree.left_out.add(NO_CLASS, file)
        for folder, files in classes.items():
            if not files:
                place, endings = self.path / folder, ", ".join(IMAGE_SUFFIXES)
                why = find_images(place).left_out.explain()
                raise ValueError(f"class folder {place} holds no image ({endings}){why}")
        return list(zip(folder_class_names(self.path, tree.folders), classes.values(), strict=True))

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        file = self.path / os.fsdecode(self._files[index])
        return self.transform.read(file, str(file), rng), int(self.labels[index])

    def file(self, index: int) -> tuple[str, bytes]:
        file = self.path / os.fsdecode(self._files[index])
        try:
            return str(file), file.read_bytes()
        except OSError as error:
            raise CorruptSample(str(file), str(error)) from error


def check_classes(classes: str) -> None:
    """Raise ValueError for another word than those of ``Classes``."""
    if classes not in get_args(Classes):
        raise ValueError(f"classes={classes!r} is unknown; choose one of {list(get_args(Classes))}")


def folder_class_names(path: Path, folders: Sequence[str]) -> list[str]:
    """Names of the classes, which are those of their folders as text; says so where a name may mislead."""
    names = [printable(folder) for folder in folders]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"image folder {path}: two class folders are called {twice}")
    if all(map(str.isdecimal, names)) and (moved := [n for n, name in enumerate(names) if int(name) != n]):
        # 0, 1, 10, 2: the order of text, which is that of other programs, too.
        label = moved[0]
        warn(
            f"{path}: the class folders are numbers, but sorted as text: label {label} is folder {names[label]}"
        )
    first: dict[str, str] = {}
    alike = [(first.setdefault(unicodedata.normalize("NFC", n).casefold(), n), n) for n in names]
    if pairs := [f"{one} and {other}" for one, other in alike if one != other]:
        more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
        warn(f"{path}: class folders {pairs[0]}{more} look alike; they are different classes")
    return names
