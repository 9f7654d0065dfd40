"""Images that a CSV or JSON file lists, with labels or captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.choices import Alpha, Orientation, Resize
from common.console import printable, warn
from data.source import ONE_CLASS, CorruptSample, Source, count_classes
from data.transforms import ImageTransform
from storage.image_lists import ListFile, Row, read_image_list
from storage.image_tree import why_no_image
from storage.left_out import LeftOut

NO_LABEL = "without a label"
NO_CAPTION = "without a caption"


class Listed(NamedTuple):
    """Entries of a list that are examples, and what is left out of it."""

    rows: list[Row]
    labels: np.ndarray  # int64, positions in class_names
    class_names: list[str]
    left_out: LeftOut


class ImageList(Source):
    """Images of a list (``storage.image_lists``), whose paths start at its own folder or at ``images``.

    The other options are those of ``ImageTransform``. Without labels in the list, all images are of one class.

    Args:
        path: the list.
        images: folder where paths in the list start.
        class_names: names of all classes, by which labels are counted. None: the names in the list, sorted as text; of
            class numbers, the numbers.
        captions: batches hold texts; rows without one are left out.

    Raises:
        FileNotFoundError: the list or the folder does not exist.
        ValueError: the list cannot be read, a label is no class, there are no captions, or no file of it is an image.
    """

    item_key = "images"

    def __init__(
        self,
        *,
        path: Path,
        image_size: int,
        images: Path | None = None,
        class_names: list[str] | None = None,
        captions: bool = False,
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
        self.folder = self.path.parent if images is None else Path(images)
        found = examples_of(read_image_list(self.path), self.folder, class_names, captions=captions)
        self.labels, self.class_names, self.left_out = found.labels, found.class_names, found.left_out
        # Bytes in one block: a list of a million strings would be copied into every worker as it is read.
        self._files = np.array([os.fsencode(row.path) for row in found.rows])
        self.has_captions = captions
        texts = [(row.caption or "").encode() for row in found.rows] if captions else []
        self._text, self._text_ends = b"".join(texts), np.cumsum([0, *map(len, texts)])

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        file = self._file(index)
        return self.transform.read(file, str(file), rng), int(self.labels[index])

    def file(self, index: int) -> tuple[str, bytes]:
        file = self._file(index)
        try:
            return str(file), file.read_bytes()
        except OSError as error:
            raise CorruptSample(str(file), str(error)) from error

    def captions(self, indices: Sequence[int]) -> list[str]:
        if not self.has_captions:
            return super().captions(indices)
        return [self._text[self._text_ends[i] : self._text_ends[i + 1]].decode() for i in indices]

    def _file(self, index: int) -> Path:
        return self.folder / os.fsdecode(self._files[index])


def examples_of(
    listed: ListFile, folder: Path, class_names: list[str] | None = None, *, captions: bool = False
) -> Listed:
    """Which entries of a list are examples, and of which classes. For arguments and errors see `ImageList`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} of {listed.path} does not exist")
    if captions and not listed.has_captions:
        raise ValueError(f'{listed.path} has no captions: expected a column "caption" or "text"')
    rows, left_out = [], LeftOut()
    for row in listed.rows:
        if listed.has_labels and row.label is None:
            left_out.add(NO_LABEL, row.path)
        elif captions and not row.caption:
            left_out.add(NO_CAPTION, row.path)
        elif reason := why_no_image(folder / row.path):
            left_out.add(reason, row.path)
        else:
            rows.append(row)
    if not rows:
        raise ValueError(
            f"{listed.path} lists no image that can be used; paths start at {folder}{left_out.explain()}"
        )
    return Listed(rows, *_classes(listed, rows, class_names), left_out)


def _classes(
    listed: ListFile, rows: list[Row], class_names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Labels int64, and the names they are positions of."""
    if not listed.has_labels:
        names = class_names or [ONE_CLASS]
        if len(names) != 1:
            raise ValueError(f"{listed.path} has no labels, but class_names has {len(names)} names")
        return np.zeros(len(rows), dtype=np.int64), list(names)
    if isinstance(rows[0].label, int):
        labels = np.array([row.label for row in rows], dtype=np.int64)
        top = int(labels.argmax())
        where = f"{listed.where(rows[top])}: {printable(rows[top].path)}"
        count = count_classes(None, class_names, largest=int(labels[top]), where=lambda: where)
        held = len(np.unique(labels))
        if class_names is None and 2 * held < count:  # years, or numbers of articles
            warn(
                f"{listed.path}: labels up to {labels.max()} make {count} classes, of which {held} have images; call"
                ' the column "class" if its numbers are names'
            )
        return labels, list(class_names or map(str, range(count)))
    names = sorted({row.label for row in rows}) if class_names is None else list(class_names)
    numbers = {name: number for number, name in enumerate(names)}
    if len(numbers) < len(names):
        raise ValueError(f"class_names of {listed.path} has a name twice")
    for row in rows:
        if row.label not in numbers:
            raise ValueError(f"{listed.where(row)}: label {row.label!r} is not in class_names")
    return np.array([numbers[row.label] for row in rows], dtype=np.int64), names
