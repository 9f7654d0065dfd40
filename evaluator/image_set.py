"""What is known about one set of images: how many, which, and what metrics keep of their features."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common import distributed
from evaluator.copies import Contents
from evaluator.feature_store import FeatureStore, Keep, PixelRows, StoredFeatures
from evaluator.metrics.base import Collector, Metric
from evaluator.moments import ROWS, Moments
from evaluator.networks import Extractor, extractor_facts
from evaluator.outcome import in_words
from evaluator.protocol import PROTOCOLS, ProtocolSettings

Key = tuple[str, type]  # kind of features, and what is kept of them


class ImageSet:
    """Counts images and feeds every collector of the metrics once, however many of them share it.

    Args:
        extractors: networks that images go through, if they give features that are needed.
        metrics: those that need features of this set.
        num_images: number over all processes, if it is known.
        keep: keep features on disk, and take from there what an earlier pass left. Then `todo` tells which images to
            give; networks see no other.
        reference: this is what samples are compared with: keep what metrics need of a reference.

    Raises:
        ValueError: no network gives the features that a metric needs, or the disk has no room to keep them.
    """

    def __init__(
        self,
        extractors: Sequence[Extractor],
        metrics: Sequence[Metric],
        *,
        settings: ProtocolSettings = PROTOCOLS["adm"],
        num_images: int | None = None,
        keep: Keep | None = None,
        reference: bool = False,
    ) -> None:
        needed = {metric.features for metric in metrics}
        self._extractors = [e for e in extractors if needed & set(e.dims)]
        dims = {name: dim for e in self._extractors for name, dim in e.dims.items()}
        missing = sorted(needed - set(dims))
        if missing:
            raise ValueError(f"features {', '.join(missing)} are needed, but no network gives them")
        self.collectors: dict[Key, Collector] = {}
        for metric in metrics:
            key, dim = metric.reference_key if reference else metric.key, dims[metric.features]
            if key in self.collectors:
                continue
            if reference:
                self.collectors[key] = metric.reference_collector(dim, settings)
            else:
                self.collectors[key] = metric.collector(dim, settings, num_images)
        self.failed: dict[Key, str] = {}  # collectors that gave up, and why; the others go on
        self._num_images = num_images
        self._seen = np.zeros(0, dtype=np.uint8)  # 1 at the positions that were given
        self._contents = [Contents(np.zeros(0, np.int64), np.zeros(0, np.uint64), 0)]  # of every batch
        self._fingerprint = 0  # sum of hashes: the same for any order and any number of processes
        self._next = distributed.rank()
        self._stores = [] if keep is None else [_store(keep, extractor) for extractor in self._extractors]
        self._recalled = False

    def todo(self) -> np.ndarray | None:
        """Positions that this process has to give, int64, increasing; None if nothing is kept: its share of all."""
        if not self._stores:
            return None
        missing = np.unique(np.concatenate([store.unfinished() for store in self._stores]))
        share, of = distributed.rank(), distributed.world_size()
        return missing[share * len(missing) // of : (share + 1) * len(missing) // of]

    def update(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add uint8 images [B, 3, H, W] at positions int64 [B]; without these every process numbers its own."""
        if positions is None:
            positions = self._next + distributed.world_size() * torch.arange(len(images))
            self._next += distributed.world_size() * len(images)
        if self._stores:
            self._keep(images, positions.cpu().numpy())
            return
        self._remember(images, positions)
        for extractor in self._extractors:
            features = extractor(images)
            for key, collector in self.collectors.items():
                if key[0] not in extractor.dims or key in self.failed:
                    continue
                try:
                    collector.update(getattr(features, key[0]), positions)
                except (ValueError, OSError) as error:  # not finite; the disk of temporary files is full
                    self.failed[key] = in_words(error)

    def _keep(self, images: torch.Tensor, positions: np.ndarray) -> None:
        lacking = [i for i, store in enumerate(self._stores) if store.lacks(positions)]
        if not lacking:
            return
        prints, placed = _prints(images.cpu(), positions)
        brightest = images.flatten(1).amax(dim=1).cpu().numpy()
        for i in lacking:
            store = self._stores[i]
            pixels = PixelRows(prints, placed, brightest, store.stream.marks(positions))
            store.write(positions, self._extractors[i](images), pixels)

    def _recall(self) -> None:
        """Know the images of the stores as if they had been given; every process takes its share."""
        if not self._stores or self._recalled:
            return
        self._recalled = True
        distributed.barrier()  # all have written
        for store in self._stores:
            positions, pixels = store.pixels()
            if missing := store.stream.count - len(positions):
                raise ValueError(f"{store.folder}: features of {missing} images are missing")
            store.stream.recall(positions, pixels.marks)
            store.close()
        own = slice(*(len(positions) * (distributed.rank() + i) // distributed.world_size() for i in (0, 1)))
        self._note(
            positions[own], pixels.prints[own], pixels.placed[own], int(pixels.brightest[own].max(initial=0))
        )

    def _remember(self, images: torch.Tensor, positions: torch.Tensor) -> None:
        numbers = positions.cpu().numpy()
        if len(numbers) != len(images) or (len(numbers) and numbers.min() < 0):
            raise ValueError(f"{len(numbers)} positions for {len(images)} images, expected one >= 0 for each")
        if self._num_images is not None and len(numbers) and numbers.max() >= self._num_images:
            raise ValueError(f"position {numbers.max()} of an image, expected less than {self._num_images}")
        self._grow(numbers)
        if self._seen[numbers].any() or len(set(numbers.tolist())) < len(numbers):
            raise ValueError("an image position was given twice; every image counts once")
        self._note(numbers, *_prints(images.cpu(), numbers), int(images.max()) if images.numel() else 0)

    def _grow(self, positions: np.ndarray) -> None:
        if len(positions) and positions.max() >= len(self._seen):
            # Twice as large each time, so that copies stay few.
            self._seen = np.pad(self._seen, (0, 2 * int(positions.max()) + 64 - len(self._seen)))

    def _note(self, positions: np.ndarray, prints: np.ndarray, placed: np.ndarray, brightest: int) -> None:
        self._grow(positions)
        self._seen[positions] = 1
        self._fingerprint += sum(placed.tolist())
        self._contents.append(Contents(positions.astype(np.int64), prints, brightest))

    def counted(self) -> tuple[int, str]:
        """Number of images and a fingerprint of their pixels and positions, over all processes.

        Raises:
            ValueError: two processes had the same position.
        """
        self._recall()
        everyone = distributed.gather_objects((np.flatnonzero(self._seen), self._fingerprint))
        positions = np.concatenate([p for p, _ in everyone])
        if len(np.unique(positions)) < len(positions):
            repeated = len(positions) - len(np.unique(positions))
            raise ValueError(
                f"{repeated} images were given to more than one process; every image counts once"
            )
        return len(positions), f"{sum(f for _, f in everyone) % 2**64:016x}"

    def contents(self) -> Contents:
        """All images by position, over all processes, all of which must call it."""
        self._recall()
        own = Contents(
            *(np.concatenate(p) for p in list(zip(*self._contents, strict=True))[:2]), self._brightest()
        )
        everyone = distributed.gather_objects(own)
        positions, prints = (np.concatenate([c[i] for c in everyone]) for i in range(2))
        order = np.argsort(positions, kind="stable")
        return Contents(positions[order], prints[order], max(c.brightest for c in everyone))

    def _brightest(self) -> int:
        return max(part.brightest for part in self._contents)

    def results(self, device: torch.device | str = "cpu") -> tuple[dict[Key, Any], dict[Key, str]]:
        """What every collector found, over all processes, and why others found nothing."""
        self._recall()
        failed = {}
        for theirs in distributed.gather_objects(self.failed):
            failed = {**theirs, **failed}
        found = {}
        for key, collector in self.collectors.items():  # in the same order on all processes
            if key in failed:
                continue
            try:
                found[key] = self._result(key, collector, device)
            except ValueError as error:  # of the sums over all processes, so all raise it
                failed[key] = in_words(error)
        return found, failed

    def _result(self, key: Key, collector: Collector, device: torch.device | str) -> Any:
        store = next((store for store in self._stores if key[0] in store.kinds), None)
        if store is None:
            return collector.result(device)
        if key[1] is Moments:
            return distributed.on_main(lambda: store.statistics(key[0]))
        if key[1] is FeatureStore:
            return store.rows(key[0]) if distributed.is_main() else None
        rows, (rank, of) = store.rows(key[0]), (distributed.rank(), distributed.world_size())
        for places in torch.arange(len(rows) * rank // of, len(rows) * (rank + 1) // of).split(ROWS):
            collector.update(rows[places], places)
        return collector.result(device)


def _store(keep: Keep, extractor: Extractor) -> StoredFeatures:
    facts = extractor_facts({"network": extractor})["network"]
    dtype = "float64" if facts.get("precision") == "float64" else "float32"
    return StoredFeatures(keep, facts, extractor.dims, dtype)


def _prints(images: torch.Tensor, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of uint8 images [B, 3, H, W] on the CPU, and of images with their positions, uint64 [B]."""
    alone, placed = [], []
    for position, image in zip(positions, images, strict=True):
        pixels = image.contiguous().numpy().tobytes()
        alone.append(_hash(b"%d %d " % image.shape[1:] + pixels))
        placed.append(_hash(int(position).to_bytes(8, "little") + pixels))
    return np.array(alone, np.uint64), np.array(placed, np.uint64)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
