"""Images in one folder per class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from common.images import IMAGE_SUFFIXES
from data.source import Source
from data.transforms import ImageTransform, Resize, decode_image


class ImageFolder(Source):
    """Images below ``path/<class>/``, at any depth; classes are the sorted names of the subfolders.

    All options but ``path`` are those of ``ImageTransform``.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: there are no class folders, or one of them holds no image.
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
    ) -> None:
        self.path = Path(path)
        self.transform = ImageTransform(
            image_size=image_size,
            resize_shorter_edge=resize_shorter_edge,
            resize=resize,
            random_crop=random_crop,
            random_flip=random_flip,
            random_area=random_area,
        )
        self.item_shape = (3, image_size, image_size)
        self.class_names = _class_folders(self.path)
        files, counts = [], []
        for name in self.class_names:
            found = _image_files(self.path / name, name)
            if not found:
                endings = ", ".join(IMAGE_SUFFIXES)
                raise ValueError(f"class folder {self.path / name} holds no image ({endings})")
            files += found
            counts.append(len(found))
        # Bytes in one block: a list of a million strings would be copied into every worker as it is read.
        self._files = np.array([os.fsencode(file) for file in files])
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        file = self.path / os.fsdecode(self._files[index])
        return self.transform(decode_image(file, str(file)), rng), int(self.labels[index])


def _class_folders(path: Path) -> list[str]:
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(f"image folder {path} {what}")
    with os.scandir(path) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in visible if entry.is_dir())
    if not folders:
        if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in visible):
            raise ValueError(
                f"image folder {path} has no labels: its images must lie in one subfolder per class"
            )
        raise ValueError(f"image folder {path} is empty: it must hold one subfolder of images per class")
    return folders


def _image_files(folder: Path, prefix: str) -> list[str]:
    """Paths of all images below ``folder``, sorted, each beginning with ``prefix``."""
    found = []
    for root, _, names in os.walk(folder, followlinks=True):
        relative = os.path.join(prefix, os.path.relpath(root, folder)) if root != str(folder) else prefix
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                found.append(os.path.join(relative, name))
    return sorted(found)
