"""Exact nearest neighbours among feature vectors, in tiles of distances so that memory stays bounded.

Rows may lie in memory maps larger than memory: a tile is read, widened to float64 and forgotten.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

TILE = 2048  # side of a tile of distances


class Nearest(NamedTuple):
    """For every query the nearest rows, nearest first: squared distances float64 [N, k] and indices int64 [N, k]."""

    squares: torch.Tensor
    indices: torch.Tensor


def nearest_rows(
    queries: torch.Tensor,
    rows: torch.Tensor,
    neighbours: int = 1,
    *,
    same: bool = False,
    device: torch.device | str = "cpu",
) -> Nearest:
    """The `neighbours` nearest of `rows` [M, d] for every query [N, d], by Euclidean distance in float64.

    Args:
        same: queries are the rows themselves; a row is not its own neighbour.

    Raises:
        ValueError: there are fewer rows than neighbours.
    """
    available = len(rows) - same
    if not 1 <= neighbours <= available:
        raise ValueError(f"neighbours={neighbours} must be from 1 to {available}")
    found = []
    for first, part in _tiles(queries, device):
        squares = torch.empty(len(part), 0, dtype=part.dtype, device=part.device)
        indices = torch.empty(len(part), 0, dtype=torch.long, device=part.device)
        for start, others in _tiles(rows, device):
            distances = squared_distances(part, others)
            if same:
                own = torch.arange(first, first + len(part), device=part.device)
                inside = (own >= start) & (own < start + len(others))
                distances[inside.nonzero()[:, 0], own[inside] - start] = torch.inf
            best = distances.topk(min(neighbours, len(others)), largest=False)
            # The earlier row of equal ones first, whatever the tiles: what comes later is appended.
            squares = torch.cat([squares, best.values], dim=1)
            indices = torch.cat([indices, best.indices + start], dim=1)
            order = squares.argsort(dim=1, stable=True)[:, :neighbours]
            squares, indices = squares.gather(1, order), indices.gather(1, order)
        found.append((squares.cpu(), indices.cpu()))
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def balls_hit(
    centres: torch.Tensor,
    squared_radii: torch.Tensor,
    points: torch.Tensor,
    *,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points strictly inside the ball of every centre, int64 [N], and balls around every point, int64 [M]."""
    inside, around = torch.zeros(len(centres), dtype=torch.long), torch.zeros(len(points), dtype=torch.long)
    for first, part in _tiles(centres, device):
        reach = squared_radii[first : first + len(part)].to(part.device)[:, None]
        for start, others in _tiles(points, device):
            hits = squared_distances(part, others) < reach
            inside[first : first + len(part)] += hits.sum(dim=1).cpu()
            around[start : start + len(others)] += hits.sum(dim=0).cpu()
    return inside, around


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances [N, M] of float64 rows [N, d] and [M, d]; equal rows have exactly zero."""
    centre = y.mean(dim=0)  # distances stay, their rounding shrinks
    x, y = x - centre, y - centre
    norms_x, norms_y = x.square().sum(dim=1), y.square().sum(dim=1)
    squares = torch.addmm(norms_y[None], x, y.T, alpha=-2).add_(norms_x[:, None])
    # |x|^2 - 2 x.y + |y|^2 rounds at the size of the norms: what is that close is computed pair by pair.
    noise = 1e-9 * (norms_x[:, None] + norms_y)
    close = (squares <= noise).nonzero()
    for part in close.split(max(1, (1 << 22) // x.shape[1])):
        i, j = part.T
        squares[i, j] = (x[i] - y[j]).square().sum(dim=1)
    return squares


def _tiles(rows: torch.Tensor, device: torch.device | str) -> Iterator[tuple[int, torch.Tensor]]:
    for first in range(0, len(rows), TILE):
        yield first, rows[first : first + TILE].detach().to(device).double()
