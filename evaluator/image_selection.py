"""Some images of a stream: a number of them at even distances, or those that belong to others."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from evaluator.image_stream import ImageStream, digest_lines
from storage.image_names import LOSSY_SUFFIXES


class SelectedImages(ImageStream):
    """Images of a stream at `indices` int64 [N], in this order; `chosen` says in a result how they were chosen.

    Streams without names take increasing indices only.
    """

    def __init__(self, stream: ImageStream, indices: np.ndarray, *, chosen: str) -> None:
        self._stream, self._indices = stream, indices
        self.source, self.size, self.has_statistics = stream.source, stream.size, stream.has_statistics
        self.left_out = stream.left_out
        self.count, self.selection = len(indices), {"of": stream.count, "chosen": chosen}
        if stream.names is not None:
            self.names = [stream.names[i] for i in indices]
            self.lossy = sum(str(name).lower().endswith(LOSSY_SUFFIXES) for name in self.names)
        if stream.labels is not None:
            self.labels, self.classes = stream.labels[indices], stream.classes

    def images(self, positions: Sequence[int]) -> Iterator[torch.Tensor]:
        yield from self._stream.images([int(self._indices[position]) for position in positions])

    def places(self, positions: Sequence[int]) -> list[int]:
        return self._stream.places([int(self._indices[position]) for position in positions])

    def pixel_facts(self) -> dict[str, Any]:
        return self._stream.pixel_facts()

    def marks(self, positions: Sequence[int]) -> np.ndarray:
        return self._stream.marks(self._indices[positions])

    def recall(self, positions: Sequence[int], marks: np.ndarray) -> None:
        self._stream.recall(self._indices[positions], marks)

    def digest(self) -> str:
        return digest_lines([self._stream.digest(), *map(str, self._indices)])

    def version(self) -> str:
        return digest_lines([self._stream.version(), *map(str, self._indices)])


def spread(stream: ImageStream, count: int | None) -> ImageStream:
    """`count` images at even distances, so that a set in the order of its classes keeps all of them; None: all.

    Raises:
        ValueError: `count` is less than 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"number of images {count} must be at least 1")
    if count is None or count >= stream.count:
        return stream
    return SelectedImages(stream, np.arange(count) * stream.count // count, chosen="evenly spaced")
