"""Images to be measured: from folders, `.npz` and `.npy` arrays, or tar shards.

A stream numbers its images, knows their number and size before the first is decoded, and gives each process a
contiguous share, so that all images are seen exactly once. Images are never skipped: one that cannot be read is an
error that names it, because a metric depends on the number of images. Memory does not grow with their number.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from common import distributed
from common.images import PixelRules, UnreadableImage, decode, pil_to_tensor
from storage.image_names import IMAGE_SUFFIXES, LOSSY_SUFFIXES
from storage.image_tree import find_images
from storage.left_out import LeftOut

Transform = Callable[[Image.Image], Image.Image]


class ImageBatch(NamedTuple):
    """Images uint8 [B, 3, H, W] and their positions in the whole stream, int64 [B]."""

    images: torch.Tensor
    positions: torch.Tensor


class ImageStream(ABC):
    """Numbered images of one size."""

    source: str  # for messages and results
    count: int  # over all processes
    size: tuple[int, int]  # (height, width) in pixels
    lossy: int = 0  # how many lie in files of a lossy format
    labels: np.ndarray | None = None  # int64 [count]
    classes: Sequence[str] | None = None  # names that labels number, if folders give them
    names: Sequence[str] | None = None  # of the files, relative to the source; arrays have none
    selection: Mapping[str, Any] | None = None  # how these were chosen among more
    has_statistics: bool = False  # the source also holds feature statistics (a reference file)

    @cached_property
    def left_out(self) -> LeftOut:
        """What of the files is no image; a stream that leaves something out assigns it. Programs print it."""
        return LeftOut()

    @abstractmethod
    def images(self, positions: Sequence[int]) -> Iterator[torch.Tensor]:
        """Images uint8 [3, H, W] at increasing positions; streams with names take any order.

        Raises:
            ValueError: an image cannot be read or has another size; the message names it.
        """

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of a cheap description of the content: names and sizes of files, checksums of array members."""

    def version(self) -> str:
        """As `digest`, and changed when a file was written again, as far as the disk tells without reading it."""
        return self.digest()

    def marks(self, positions: Sequence[int]) -> np.ndarray:
        """What `pixel_facts` counts, of images decoded before: uint8, 1 = transparent pixels, 2 = an orientation."""
        return np.zeros(len(positions), np.uint8)

    def recall(self, positions: Sequence[int], marks: np.ndarray) -> None:  # noqa: B027 (others have no marks)
        """Take `marks` of an earlier pass for images that are not decoded again."""

    def pixel_facts(self) -> dict[str, Any]:
        """How files became pixels, and how many of those decoded so far, over all processes, have transparent pixels or
        an EXIF orientation other than upright; empty where there are no image files. All processes call it together.
        """
        return {}

    def places(self, positions: Sequence[int]) -> list[int]:
        """Positions in the source that these images were chosen from."""
        return list(positions)

    def share(self) -> range:
        """Positions that belong to this process."""
        rank, processes = distributed.rank(), distributed.world_size()
        return range(self.count * rank // processes, self.count * (rank + 1) // processes)

    def batches(self, batch_size: int, positions: Sequence[int] | None = None) -> Iterator[ImageBatch]:
        """Batches of this process's share, or of the increasing positions given; raises ValueError as `images`."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        share = self.share() if positions is None else positions
        waiting: list[torch.Tensor] = []
        numbers: list[int] = []
        for position, image in zip(share, self.images(share), strict=True):
            waiting.append(image)
            numbers.append(position)
            if len(waiting) == batch_size or position == share[-1]:
                yield ImageBatch(torch.stack(waiting), torch.tensor(numbers))
                waiting, numbers = [], []

    def checked(self, image: torch.Tensor, name: str) -> torch.Tensor:
        """The image [3, H, W] itself; raises ValueError if it has another size than the first one."""
        if tuple(image.shape[1:]) != self.size:
            found, expected = f"{image.shape[1]} x {image.shape[2]}", f"{self.size[0]} x {self.size[1]}"
            raise ValueError(
                f"{name} has {found} pixels (height x width), others of {self.source} {expected}; "
                "all must have one size: choose how to crop them"
            )
        return image


class EncodedImages(ImageStream):
    """Image files, decoded ahead by a few threads.

    Args:
        names: one per image, for messages.
        transform: applied to every decoded image.
        rules: how files become RGB; `PixelRules()` if None.

    Raises:
        ValueError: there are no images, or the first one cannot be read.
    """

    def __init__(
        self,
        *,
        source: str,
        names: Sequence[str],
        transform: Transform | None = None,
        rules: PixelRules | None = None,
    ) -> None:
        if not names:
            raise ValueError(
                f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}){self.left_out.explain()}"
            )
        self.source, self.count, self.names = source, len(names), names
        self.lossy = sum(str(name).lower().endswith(LOSSY_SUFFIXES) for name in names)
        self._transform, self._rules = transform, rules or PixelRules()
        self._transparent, self._turned = np.zeros((2, len(names)), dtype=bool)  # as far as they were decoded
        self.size = tuple(self._decode(0, first=True).shape[1:])

    @abstractmethod
    def content(self, position: int) -> bytes:
        """The file of one image."""

    def images(self, positions: Sequence[int]) -> Iterator[torch.Tensor]:
        # Pillow decodes without holding the interpreter, so threads are enough.
        workers = max(1, min(8, os.cpu_count() or 1))
        pool, ahead = ThreadPoolExecutor(workers), deque[Future]()
        try:
            for position in positions:
                ahead.append(pool.submit(self._decode, position))
                if len(ahead) > 8 * workers:  # bounds the images in memory
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # a reader that stops early waits for no queue

    def _decode(self, position: int, first: bool = False) -> torch.Tensor:
        name = f"{self.source}: {self.names[position]}"
        try:
            decoded = decode(self.content(position), self._rules)
        except (UnreadableImage, OSError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        self._transparent[position], self._turned[position] = decoded.transparent, decoded.orientation != 1
        image = decoded.image
        pixels = pil_to_tensor(image if self._transform is None else self._transform(image))
        return pixels if first else self.checked(pixels, name)

    def marks(self, positions: Sequence[int]) -> np.ndarray:
        return (self._transparent[positions] + 2 * self._turned[positions]).astype(np.uint8)

    def recall(self, positions: Sequence[int], marks: np.ndarray) -> None:
        self._transparent[positions] |= (marks & 1).astype(bool)
        self._turned[positions] |= (marks & 2).astype(bool)

    def pixel_facts(self) -> dict[str, Any]:
        found = np.stack([self._transparent[: self.count], self._turned[: self.count]])
        everyone = np.logical_or.reduce(distributed.gather_objects(found))
        transparent, turned = map(int, everyone.sum(axis=1))
        return {**asdict(self._rules), "transparent_files": transparent, "turned_files": turned}


class FolderImages(EncodedImages):
    """Image files below a folder at any depth, sorted by path; names that are all numbers count as numbers.

    Hidden files and folders are left out; `only_numbered` takes `<number>.<suffix>` of the folder itself alone.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        only_numbered: bool = False,
        transform: Transform | None = None,
        rules: PixelRules | None = None,
    ) -> None:
        self.folder, tree = Path(folder), find_images(folder)
        self.left_out = LeftOut() if only_numbered else tree.left_out
        found = [n for n in tree.files if not only_numbered or ("/" not in n and _number(n))]
        # "10.png" belongs after "2.png", or two folders that pad their numbers differently are paired wrongly.
        if all(map(_number, found)):
            found.sort(key=lambda name: (os.path.dirname(name), int(_number(name)), name))
        classes = [
            name.partition("/")[0] for name in found if "/" in name
        ]  # the first folder, as in training
        if len(classes) == len(found) and len(set(classes)) > 1:
            found_classes, numbers = np.unique(classes, return_inverse=True)
            self.classes, self.labels = found_classes.tolist(), numbers.astype(np.int64)
        super().__init__(source=str(folder), names=found, transform=transform, rules=rules)

    def content(self, position: int) -> bytes:
        return (self.folder / self.names[position]).read_bytes()

    def digest(self) -> str:
        sizes = ((name, (self.folder / name).stat().st_size) for name in self.names)
        return digest_lines(f"{name}\t{size}" for name, size in sizes)

    def version(self) -> str:
        found = ((name, (self.folder / name).stat()) for name in self.names)
        return digest_lines(f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}" for name, stat in found)


def _number(name: str) -> str:
    """The digits of `<number>.<suffix>`; empty if the name is no number."""
    stem = Path(name).stem
    return stem if stem.isascii() and stem.isdigit() else ""


def digest_lines(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, in hex."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")  # file names may be any bytes
    return total.hexdigest()
