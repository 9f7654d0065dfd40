"""Images in one folder per class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common.choices import Alpha, Orientation, Resize
from common.console import printable, warn
from data.source import CorruptSample, Source
from data.transforms import ImageTransform
from storage.image_names import IMAGE_SUFFIXES
from storage.image_tree import ImageTree, find_images

NO_CLASS = "beside the class folders, so of no class"


class ImageFolder(Source):
    """Images below ``path/<class>/``, at any depth; classes are the names of the subfolders, sorted as text.

    All options but ``path`` are those of ``ImageTransform``. What is an image says ``storage.image_tree``.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: there are no class folders, or one of them holds no image.
        OSError: a folder cannot be listed.
    """

    item_key = "images"

    def __init__(
        self,
        *,
        path: Path,
        image_size: int,
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
        tree = find_images(self.path)
        classes: dict[str, list[str]] = {folder: [] for folder in tree.folders}
        for file in tree.files:
            folder, slash, _ = file.partition("/")
            if slash:
                classes[folder].append(file)
            else:
                tree.left_out.add(NO_CLASS, file)
        self._check(tree, classes)
        self.left_out, self.class_names = tree.left_out, folder_class_names(self.path, tree.folders)
        # Bytes in one block: a list of a million strings would be copied into every worker as it is read.
        self._files = np.array([os.fsencode(file) for files in classes.values() for file in files])
        counts = [len(files) for files in classes.values()]
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def _check(self, tree: ImageTree, classes: dict[str, list[str]]) -> None:
        if not tree.folders:
            if tree.files:
                raise ValueError(
                    f"image folder {self.path} has no labels: its images must lie in one subfolder per class"
                )
            why = tree.left_out.explain()
            raise ValueError(
                f"image folder {self.path} is empty: it must hold one subfolder of images per class{why}"
            )
        for folder, files in classes.items():
            if not files:
                place, endings = self.path / folder, ", ".join(IMAGE_SUFFIXES)
                why = find_images(place).left_out.explain()
                raise ValueError(f"class folder {place} holds no image ({endings}){why}")

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        file = self.path / os.fsdecode(self._files[index])
        return self.transform.read(file, str(file), rng), int(self.labels[index])

    def file(self, index: int) -> tuple[str, bytes]:
        file = self.path / os.fsdecode(self._files[index])
        try:
            return str(file), file.read_bytes()
        except OSError as error:
            raise CorruptSample(str(file), str(error)) from error


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
