"""Lloyd's algorithm over vectors that are spread over batches and processes, as pure functions.

One pass is: `assign` every batch, `accumulate` it, sum both accumulators over processes, `move_centroids`. "cosine" is
spherical k-means: vectors and centroids are compared as unit vectors, and centroids are unit vectors.
"""

from typing import Literal

import torch
from torch.nn import functional as F

from common.distributed import all_reduce_sum
from modeling.quantizers.vq import squared_distances

Metric = Literal["cosine", "euclidean"]
ROWS = 4096  # vectors compared at a time: 128 MB of distances to 8192 centroids


def prepare(vectors: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Vectors [M, C] as the metric compares them, float32: unit vectors for cosine. ValueError: unknown metric."""
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric={metric!r} is unknown; choose cosine or euclidean")
    return F.normalize(vectors.float(), dim=-1) if metric == "cosine" else vectors.float()


@torch.no_grad()
def assign(vectors: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest of the centroids [K, C] for every vector [M, C], both as `prepare` gives them.

    Returns tokens int64 [M] and squared distances [M], at least 0 (of unit vectors twice 1 - cosine).
    """
    tokens = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    distances = vectors.new_empty(len(vectors))
    for start in range(0, len(vectors), ROWS):
        rows = slice(start, start + ROWS)
        # Without |v|^2, which is the same for all centroids.
        nearest = squared_distances(vectors[rows], centroids).min(dim=1)
        tokens[rows] = nearest.indices
        distances[rows] = nearest.values + vectors[rows].square().sum(dim=1)
    return tokens, distances.clamp_min(0)  # rounding can give -1e-7


@torch.no_grad()
def accumulate(vectors: torch.Tensor, tokens: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> None:
    """Add vectors [M, C] to `sums` [K, C] and their number to `counts` [K] at their tokens [M], in place."""
    sums.index_add_(0, tokens, vectors.to(sums.dtype))
    counts.index_add_(0, tokens, torch.ones_like(tokens, dtype=counts.dtype))


@torch.no_grad()
def move_centroids(
    centroids: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor, metric: Metric
) -> torch.Tensor:
    """Centroids [K, C] at the means of the vectors of all processes; an empty cluster keeps its centroid."""
    means = (sums / counts.clamp(min=1)[:, None]).to(centroids.dtype)  # no 0 / 0 for empty clusters
    return torch.where(counts[:, None] > 0, prepare(means, metric), centroids)


@torch.no_grad()
def kmeans(
    vectors: torch.Tensor, centroids: torch.Tensor, *, iterations: int, metric: Metric
) -> torch.Tensor:
    """Centroids [K, C] after some iterations over the vectors of all processes, each holding its share [M, C]."""
    vectors, centroids = prepare(vectors, metric), prepare(centroids, metric)  # processes must start alike
    for _ in range(iterations):
        sums, counts = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
        accumulate(vectors, assign(vectors, centroids)[0], sums, counts)
        centroids = move_centroids(centroids, all_reduce_sum(sums), all_reduce_sum(counts), metric)
    return centroids
