"""Feature vectors of all images on disk, for the metrics that no sums can replace (KID, precision and recall)."""

import tempfile
from typing import IO

import numpy as np
import torch

from common import distributed

ROWS = 1024  # vectors that each process sends at a time


class FeatureStore:
    """Appends float32 vectors [B, dim] to a temporary file of each process; 50,000 of 2048 numbers take 410 MB of disk.

    `update` raises OSError if the disk of temporary files is full.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this object)
        self._positions: list[np.ndarray] = []

    def update(self, features: torch.Tensor, positions: torch.Tensor) -> None:
        rows = np.ascontiguousarray(features.detach().cpu().float().numpy())
        self._file.write(memoryview(rows).cast("B"))
        self._file.flush()  # a full disk shows here and not at the end
        self._positions.append(positions.cpu().numpy().astype(np.int64))

    def result(self, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """The vectors of all processes by position, float32 [N, dim]; every process must call it.

        They are mapped from disk on the main process, None on the others.
        """
        self._file.flush()
        own = np.concatenate([np.empty(0, np.int64), *self._positions])
        rows = _mapped(self._file, (len(own), self.dim))
        if not distributed.is_active():
            order = np.argsort(own, kind="stable")
            return torch.from_numpy(rows if (order == np.arange(len(own))).all() else rows[order])
        everyone = distributed.gather_objects(own)  # positions by rank
        # Rank of each position among all: the row that it gets in the result.
        places = np.argsort(np.argsort(np.concatenate(everyone), kind="stable"), kind="stable")
        starts = np.cumsum([0, *map(len, everyone)])
        target = None
        if distributed.is_main():
            self._all = tempfile.TemporaryFile()  # noqa: SIM115 (backs the result)
            self._all.truncate(4 * self.dim * len(places))
            target = _mapped(self._all, (len(places), self.dim))
        for first in range(0, max(map(len, everyone)), ROWS):  # the longest share: all ranks take part
            parts = distributed.gather_objects(np.array(rows[first : first + ROWS]))
            for start, part in zip(starts, parts, strict=False):
                if target is not None and len(part):
                    target[places[start + first : start + first + len(part)]] = part
        return None if target is None else torch.from_numpy(target)


def _mapped(file: IO[bytes], shape: tuple[int, int]) -> np.ndarray:
    if not shape[0]:
        return np.empty(shape, np.float32)  # an empty file cannot be mapped
    return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
