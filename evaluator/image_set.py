"""What is known about one set of images: how many, which, and what metrics keep of their features."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common import distributed
from evaluator.copies import Contents
from evaluator.metrics.base import Collector, Metric
from evaluator.networks import Extractor
from evaluator.outcome import in_words
from evaluator.protocol import PROTOCOLS, ProtocolSettings

Key = tuple[str, type]  # kind of features, and what is kept of them


class ImageSet:
    """Counts images and feeds every collector of the metrics once, however many of them share it.

    Args:
        extractors: networks that images go through, if they give features that are needed.
        metrics: those that need features of this set.
        num_images: number over all processes, if it is known.

    Raises:
        ValueError: no network gives the features that a metric needs.
    """

    def __init__(
        self,
        extractors: Sequence[Extractor],
        metrics: Sequence[Metric],
        *,
        settings: ProtocolSettings = PROTOCOLS["adm"],
        num_images: int | None = None,
    ) -> None:
        needed = {metric.features for metric in metrics}
        self._extractors = [e for e in extractors if needed & set(e.dims)]
        dims = {name: dim for e in self._extractors for name, dim in e.dims.items()}
        missing = sorted(needed - set(dims))
        if missing:
            raise ValueError(f"features {', '.join(missing)} are needed, but no network gives them")
        self.collectors: dict[Key, Collector] = {}
        for metric in metrics:
            if metric.key not in self.collectors:
                self.collectors[metric.key] = metric.collector(dims[metric.features], settings, num_images)
        self.failed: dict[Key, str] = {}  # collectors that gave up, and why; the others go on
        self._num_images = num_images
        self._seen = np.zeros(0, dtype=np.uint8)  # 1 at the positions that were given
        self._contents = [Contents(np.zeros(0, np.int64), np.zeros(0, np.uint64), 0)]  # of every batch
        self._fingerprint = 0  # sum of hashes: the same for any order and any number of processes
        self._next = distributed.rank()

    def update(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add uint8 images [B, 3, H, W] at positions int64 [B]; without these every process numbers its own."""
        if positions is None:
            positions = self._next + distributed.world_size() * torch.arange(len(images))
            self._next += distributed.world_size() * len(images)
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

    def _remember(self, images: torch.Tensor, positions: torch.Tensor) -> None:
        numbers = positions.cpu().numpy()
        if len(numbers) != len(images) or (len(numbers) and numbers.min() < 0):
            raise ValueError(f"{len(numbers)} positions for {len(images)} images, expected one >= 0 for each")
        if self._num_images is not None and len(numbers) and numbers.max() >= self._num_images:
            raise ValueError(f"position {numbers.max()} of an image, expected less than {self._num_images}")
        if len(numbers) and numbers.max() >= len(self._seen):
            # Twice as large each time, so that copies stay few.
            self._seen = np.pad(self._seen, (0, 2 * int(numbers.max()) + 64 - len(self._seen)))
        if self._seen[numbers].any() or len(set(numbers.tolist())) < len(numbers):
            raise ValueError("an image position was given twice; every image counts once")
        self._seen[numbers] = 1
        prints, images = [], images.cpu()
        for number, image in zip(numbers, images, strict=True):
            pixels = image.contiguous().numpy().tobytes()
            prints.append(_hash(b"%d %d " % image.shape[1:] + pixels))
            self._fingerprint += _hash(int(number).to_bytes(8, "little") + pixels)
        brightest = int(images.max()) if images.numel() else 0
        self._contents.append(Contents(numbers.astype(np.int64), np.array(prints, np.uint64), brightest))

    def counted(self) -> tuple[int, str]:
        """Number of images and a fingerprint of their pixels and positions, over all processes.

        Raises:
            ValueError: two processes had the same position.
        """
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
        failed = {}
        for theirs in distributed.gather_objects(self.failed):
            failed = {**theirs, **failed}
        found = {}
        for key, collector in self.collectors.items():  # in the same order on all processes
            if key in failed:
                continue
            try:
                found[key] = collector.result(device)
            except ValueError as error:  # of the sums over all processes, so all raise it
                failed[key] = in_words(error)
        return found, failed


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
