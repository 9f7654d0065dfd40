"""K-means over the features that a frozen network gives to images (Cluster, arXiv:2411.04406).

Features are computed again in every pass over the images, never stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common import distributed
from common.images import to_float
from data.source import Source
from data.still import Part, share_batches
from modeling.pretrained.teachers import Teacher
from modeling.quantizers.kmeans import Metric, accumulate, assign, move_centroids, prepare

START_ATTEMPTS = 5


@dataclass
class FeatureClustering:
    """Lloyd's algorithm over the images of all processes."""

    teacher: Teacher
    source: Source  # images; each has `teacher.grid ** 2` features
    device: torch.device
    codebook_size: int
    metric: Metric  # "cosine" compares unit vectors
    seed: int  # of the features to start from
    loading: dict[str, Any]  # batch_size, num_workers and max_skipped of `data.still.share_batches`

    def features(self, source: Source, title: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Positions int64 [B] and features [B, grid * grid, C], as the metric compares them, of this process."""
        for batch in share_batches(source, title, **self.loading):
            if len(batch["positions"]):
                features = self.teacher(to_float(batch["images"].to(self.device)))
                yield batch["positions"], prepare(features.flatten(2).transpose(1, 2), self.metric)

    def start(self) -> torch.Tensor:
        """Features [K, C] at places drawn by the seed alone, the same for any number of processes.

        Raises:
            ValueError: there are fewer features than codes, or too many of them cannot be read.
        """
        places, count = self.teacher.grid**2, self.codebook_size
        total = len(self.source) * places
        if total < count:
            images = f"{len(self.source)} images ({places} each)"
            raise ValueError(f"codebook_size={count} is more than the {total} features of {images}")
        draws = np.random.default_rng(self.seed)
        centroids = torch.zeros(count, self.teacher.width, device=self.device)
        missing = np.arange(count)  # rows without a feature so far: all, then those of unreadable images
        for _ in range(START_ATTEMPTS):
            images, cells = np.divmod(draws.choice(total, len(missing), replace=False), places)
            unique, image_of = np.unique(images, return_inverse=True)
            found = torch.zeros(count, device=self.device)
            for positions, vectors in self.features(Part(self.source, unique), "start"):
                slot = np.full(len(unique), -1)  # row in this batch of every wanted image, -1 if elsewhere
                slot[positions.numpy()] = np.arange(len(positions))
                here = np.flatnonzero(slot[image_of] >= 0)
                rows = torch.from_numpy(missing[here]).to(self.device)
                centroids[rows] = vectors[slot[image_of[here]], cells[here]]
                found[rows] = 1.0
            missing = missing[distributed.all_reduce_sum(found).cpu().numpy()[missing] == 0]
            if not len(missing):  # one process has read each place, the others hold zeros
                return distributed.all_reduce_sum(centroids)
        raise ValueError(f"{len(missing)} of {count} features to start from cannot be read")

    def one_pass(self, centroids: torch.Tensor, title: str) -> tuple[torch.Tensor, dict[str, float | bool]]:
        """One iteration over all images.

        Returns:
            New centroids [K, C]; the mean squared distance of the features to the old ones, how evenly these were
            used, and whether none of them moved.
        """
        # Millions of features in one sum: float64, where the device has it.
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.zeros(centroids.shape, dtype=exact, device=self.device)
        counts = torch.zeros(len(centroids), dtype=exact, device=self.device)
        distance = torch.zeros((), dtype=exact, device=self.device)
        for _, vectors in self.features(self.source, title):
            vectors = vectors.flatten(0, 1)  # [B * grid * grid, C]
            tokens, distances = assign(vectors, centroids)
            accumulate(vectors, tokens, sums, counts)
            distance += distances.to(exact).sum()
        sums, counts, distance = (distributed.all_reduce_sum(x) for x in (sums, counts, distance))
        if not counts.sum():
            raise ValueError("none of the images can be read")
        moved = move_centroids(centroids, sums, counts, self.metric)
        shares = counts[counts > 0].cpu().double() / counts.cpu().double().sum()
        return moved, {
            "mean_squared_distance": float(distance / counts.sum()),
            "codebook_usage": float((counts > 0).double().mean()),
            "codebook_perplexity": float(
                2 ** -(shares * shares.log2()).sum()
            ),  # used codes only: no log of 0
            "converged": bool(torch.equal(moved, centroids)),
        }
