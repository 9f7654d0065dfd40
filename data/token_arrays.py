"""Tokens of another program in a pair of arrays per image, the layout that LlamaGen reads.

``<root>/imagenet256_codes/<i>.npy`` is int64 [1, crops, N] and ``<root>/imagenet256_labels/<i>.npy`` int64 [1], for
i = 0, 1, ...; only the ends of the two folder names are fixed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from storage.arrays import read_npy

_ROWS = 512  # images read at a time


class TokenArrays:
    """Folder of array pairs: one folder whose name ends in ``_codes`` and one of the same name with ``_labels``.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: one of the two folders is missing, or there are several.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"folder {self.root} does not exist")
        found = sorted(p for p in self.root.glob("[!.]*_codes") if p.is_dir())
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise ValueError(f"{self.root} must hold one folder whose name ends in _codes, found {names}")
        labels = self.root / f"{found[0].name.removesuffix('_codes')}_labels"
        if not labels.is_dir():
            raise ValueError(f"{self.root} holds {found[0].name}, but no {labels.name}")
        self.folders = (found[0], labels)
        size = re.search(r"(\d+)_codes$", found[0].name)
        self.image_size = int(size[1]) if size else None  # the number at the end of the folder's name

    def count(self) -> int:
        """Number of images; ValueError if there are none, or the folders have different numbers of arrays."""
        counts = [sum(entry.name.endswith(".npy") for entry in os.scandir(folder)) for folder in self.folders]
        if counts[0] != counts[1] or not counts[0]:
            names = [folder.name for folder in self.folders]
            raise ValueError(
                f"{self.root}: {names[0]} has {counts[0]} arrays and {names[1]} {counts[1]}, expected one each"
            )
        return counts[0]

    def shape(self) -> tuple[int, int]:
        """Crops and tokens N of the first image; codes may be [1, crops, N] or [crops, N], else ValueError."""
        path = self.folders[0] / "0.npy"
        shape = _load(path).shape
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1) or 0 in shape:
            raise ValueError(f"{path} has shape {list(shape)}, expected [1, crops, N] or [crops, N]")
        return shape[-2], shape[-1]

    def blocks(
        self, rows: Sequence[int], *, shape: tuple[int, int], codebook_size: int, num_classes: int
    ) -> Iterator[tuple[Sequence[int], np.ndarray, np.ndarray]]:
        """Rows [k], tokens [k, crops, N] and classes [k] of some of the images, several at a time.

        Raises:
            ValueError: an array is missing or damaged, or has another shape than `shape` or values out of range.
        """
        codes, labels = self.folders
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            tokens = [_read(codes / f"{row}.npy", shape, codebook_size) for row in part]
            classes = [_read(labels / f"{row}.npy", (), num_classes) for row in part]
            yield part, np.stack(tokens), np.stack(classes)


def save_arrays(folders: Sequence[Path], number: int, tokens: np.ndarray, label: int) -> None:
    """Write image `number`, tokens [crops, N], into the folders of codes and labels."""
    np.save(folders[0] / f"{number}.npy", tokens[None].astype(np.int64))
    np.save(folders[1] / f"{number}.npy", np.array([label], dtype=np.int64))


def _read(path: Path, shape: tuple[int, ...], limit: int) -> np.ndarray:
    array = _load(path)
    if array.shape not in (shape, (1, *shape)):  # with or without the leading one
        raise ValueError(f"{path} has shape {list(array.shape)}, expected {[1, *shape]}")
    if array.min() < 0 or array.max() >= limit:
        raise ValueError(f"{path} has values in {array.min()}..{array.max()}, expected 0..{limit - 1}")
    return array.reshape(shape)


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing; files are numbered 0.npy, 1.npy, ...")
    array = read_npy(path)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold one array of whole numbers")
    return array
