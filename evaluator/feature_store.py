"""Feature vectors of all images on disk: for one measurement, or kept, so that later ones need no network.

`StoredFeatures` are kept under a name that follows from pixels and network, and an interrupted pass goes on where it
stopped. `FeatureStore` is the temporary form: a collector of metrics that no sums can replace.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from common import distributed
from evaluator.image_stream import ImageStream
from evaluator.moments import Statistics, statistics_of
from storage.arrays import ArrayFile, damage_named
from storage.npz import write_npz
from storage.rows import RowStore

ROWS = 1024  # vectors that each process sends at a time
FORMAT = 1  # of kept features: another number when features are computed in another way


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


@dataclass(frozen=True)
class Keep:
    """Where features of a stream are kept, and what its pixels depend on besides the files (JSON values).

    The folder must be one that all processes see. It holds a folder per set of images and network.
    """

    folder: Path
    stream: ImageStream
    recipe: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        """What says that two runs saw the same pixels: names, sizes and times of the files, and the recipe."""
        height, width = self.stream.size
        size = {"count": self.stream.count, "height": height, "width": width}
        return {"images": self.stream.version(), **size, **self.recipe}


class PixelRows(NamedTuple):
    """What is known of images besides features, by position: uint64 hashes of the pixels, and of pixels with position,
    the brightest level, and `ImageStream.marks`, uint8.
    """

    prints: np.ndarray
    placed: np.ndarray
    brightest: np.ndarray
    marks: np.ndarray


class StoredFeatures:
    """Features of one set of images by one network, in rows that several processes write.

    Args:
        keep: where, and of which pixels.
        network: hash, precision, ... of the network (JSON values).
        dims: sizes of its kinds of features; all kinds are kept.
        dtype: numpy type of the features.

    Raises:
        ValueError: the disk is too small.
    """

    def __init__(
        self, keep: Keep, network: Mapping[str, Any], dims: Mapping[str, int], dtype: str = "float32"
    ) -> None:
        facts = {"format": FORMAT, **keep.facts(), "network": dict(network), "dims": dict(dims)}
        facts = json.loads(json.dumps(facts, sort_keys=True, default=str))
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.kinds, self.stream = tuple(dims), keep.stream
        self.folder = keep.folder / f"{self.kinds[0]}-{name}"
        columns = {"prints": "uint64", "placed": "uint64", "brightest": "uint8", "marks": "uint8"}
        arrays = {name: ((1,), dtype) for name, dtype in columns.items()}
        arrays |= {kind: ((dim,), dtype) for kind, dim in dims.items()}
        # Moments are numbers of all rows: 8 bytes for each entry of a covariance.
        extra = sum(8 * dim * (dim + 1) for dim in dims.values())
        self._rows = RowStore(
            self.folder, count=keep.stream.count, arrays=arrays, facts=facts, extra_bytes=extra
        )
        self._lacking = np.zeros(keep.stream.count, dtype=bool)
        self._lacking[self._rows.unfinished()] = True

    def unfinished(self) -> np.ndarray:
        """Positions without features when the store was opened, of all processes, int64."""
        return self._rows.unfinished()

    def lacks(self, positions: np.ndarray) -> bool:
        """Whether one of these images had no features when the store was opened."""
        return bool(self._lacking[positions].any())

    def write(self, positions: np.ndarray, features: Any, pixels: PixelRows) -> None:
        """Keep features of a batch, a tuple named by kinds, and what is known of its images; raises OSError.

        A process that is killed loses no batch that was written before.
        """
        rows = {kind: getattr(features, kind).detach().cpu().numpy() for kind in self.kinds}
        rows |= {name: values[:, None] for name, values in pixels._asdict().items()}
        self._rows.write_rows(positions, **rows)

    def close(self) -> None:
        """Write no more; what is there stays readable."""
        self._rows.close()

    def rows(self, kind: str) -> torch.Tensor:
        """Features by position, [N, d], mapped from disk. All processes must have written theirs."""
        # Copy on write: torch wants memory that it may write, the file stays as it is.
        return torch.from_numpy(np.load(self._rows.path(kind), mmap_mode="c"))

    def pixels(self) -> tuple[np.ndarray, PixelRows]:
        """Positions of the images that are complete, int64, and what is known of them."""
        done = np.load(self._rows.path("flags"), mmap_mode="r")[:, 0] == 1
        known = [np.load(self._rows.path(name), mmap_mode="r")[:, 0][done] for name in PixelRows._fields]
        return np.flatnonzero(done), PixelRows(*known)

    def statistics(self, kind: str) -> Statistics:
        """Mean and covariance of all features of a kind, computed once and kept; for one process.

        Raises:
            ValueError: features are not finite, or there are fewer than two.
        """
        path = self.folder / f"moments_{kind}.npz"
        if not path.is_file():
            found = statistics_of(self.rows(kind))
            write_npz(path, {"mean": found.mean, "covariance": found.covariance})
            return found
        with damage_named(f"{path} cannot be read; remove it"), ArrayFile(path) as arrays:
            return Statistics(arrays.read("mean"), arrays.read("covariance"), self.stream.count)
