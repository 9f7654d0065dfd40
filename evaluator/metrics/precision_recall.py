"""Precision and recall of generated images by nearest-neighbour manifolds (arXiv:1904.06991).

A set is taken for the union of balls around its points, each reaching to the k-th nearest neighbour in the set.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Metric, require_features
from evaluator.protocol import ProtocolSettings

Rule = Literal["float32", "adm_float16"]

# Side of the square tiles of distances. The float16 rule decides per tile whether to fall back to float32, so its
# tiles must be as large as in ADM's evaluator.
TILES = {"float32": 4096, "adm_float16": 10_000}


class PrecisionRecall(NamedTuple):
    """Shares in 0 ... 1: generated images on the real manifold, real images on the generated one."""

    precision: float
    recall: float


def precision_recall(
    generated: torch.Tensor,
    reference: torch.Tensor,
    *,
    neighbours: int = 3,
    rule: Rule = "float32",
    device: torch.device | str = "cpu",
    tile: int | None = None,
) -> PrecisionRecall:
    """Precision and recall of features [N, d] against [M, d]; both depend on both counts.

    ADM takes 50,000 generated and 10,000 reference images.

    Args:
        neighbours: k, at least 1 and below N and M.
        rule: how distances are computed. "float32" subtracts the common mean first. "adm_float16" repeats ADM's
            evaluator: half precision without centring, a tile again in float32 if half precision overflows; it moves
            single decisions.
        tile: side of a tile of distances, bounds the memory; by default `TILES[rule]`.

    Raises:
        ValueError: shapes do not fit, values are not finite, there are too few vectors, or the rule is unknown.
    """
    require_features(generated, reference)
    if rule not in TILES:
        raise ValueError(f"rule={rule!r} must be one of {', '.join(TILES)}")
    if not 1 <= neighbours < min(len(generated), len(reference)):
        raise ValueError(
            f"neighbours={neighbours} must be from 1 to {min(len(generated), len(reference)) - 1}, one less than "
            "the smaller set"
        )
    tile = tile or TILES[rule]
    with torch.no_grad(), _full_precision():
        generated, reference = _prepared(generated, reference, rule)
        reach_generated = manifold_radii(generated, neighbours, rule=rule, device=device, tile=tile)
        reach_reference = manifold_radii(reference, neighbours, rule=rule, device=device, tile=tile)
        on_reference = torch.zeros(len(generated), dtype=torch.bool)
        on_generated = torch.zeros(len(reference), dtype=torch.bool)
        for rows in torch.arange(len(reference)).split(tile):
            for columns in torch.arange(len(generated)).split(tile):
                distances = _distances(reference[rows].to(device), generated[columns].to(device), rule)
                inside = distances <= reach_reference[rows, None].to(device)  # [real, generated]
                on_reference[columns] |= inside.any(dim=0).cpu()
                inside = distances <= reach_generated[columns].to(device)
                on_generated[rows] |= inside.any(dim=1).cpu()
    return PrecisionRecall(float(on_reference.double().mean()), float(on_generated.double().mean()))


def manifold_radii(
    features: torch.Tensor,
    neighbours: int,
    *,
    rule: Rule = "float32",
    device: torch.device | str = "cpu",
    tile: int | None = None,
) -> torch.Tensor:
    """Squared distance of every vector [N, d] to its k-th nearest neighbour in the same set, [N]."""
    tile, radii = tile or TILES[rule], []
    for rows in features.split(tile):
        rows, nearest = rows.to(device), None
        for columns in features.split(tile):
            distances = _distances(rows, columns.to(device), rule)
            # k + 1, because the distance of every vector to itself is among them.
            smallest = distances.topk(min(neighbours + 1, distances.shape[1]), largest=False).values
            nearest = smallest if nearest is None else torch.cat([nearest, smallest], dim=1)
            nearest = nearest.topk(min(neighbours + 1, nearest.shape[1]), largest=False).values
        radii.append(nearest.amax(dim=1).cpu())
    return torch.cat(radii)


def _prepared(
    generated: torch.Tensor, reference: torch.Tensor, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    sets = [features.detach().cpu() for features in (generated, reference)]
    if rule == "adm_float16":
        return sets[0].float(), sets[1].float()
    count = sum(len(features) for features in sets)
    centre = sum(features.sum(dim=0, dtype=torch.float64) for features in sets) / count
    # Distances stay as they are, their rounding shrinks. One constant for both: rounding it moves no distance.
    return sets[0].float() - centre.float(), sets[1].float() - centre.float()


def _distances(x: torch.Tensor, y: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Squared Euclidean distances [len(x), len(y)]."""
    if rule == "adm_float16":
        # Products of half-precision numbers are added in float32 and rounded once, as matrix units do.
        half_x, half_y = x.half().float(), y.half().float()
        norms_x, norms_y = (z.half().square().float().sum(dim=1).half() for z in (half_x, half_y))
        halved = norms_x[:, None] - 2 * (half_x @ half_y.T).half() + norms_y
        if torch.isfinite(halved).all():  # otherwise the tile overflowed: float32 below, as ADM does
            return halved.clamp(min=0).float()
    norms_x, norms_y = x.square().sum(dim=1), y.square().sum(dim=1)
    # |x|^2 - 2 x.y + |y|^2; rounding may leave a little below zero.
    return torch.addmm(norms_y[None], x, y.T, alpha=-2).add_(norms_x[:, None]).clamp_(min=0)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in full float32: training may have allowed fewer bits, which would swamp small distances."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class PrecisionRecallMetric(Metric):
    """Precision and recall on any kind of features: `precision_recall` or `precision_recall_<space>`."""

    keeps = FeatureStore

    @property
    def values(self) -> tuple[str, ...]:
        space = self.name.removeprefix("precision_recall")
        return (f"precision{space}", f"recall{space}")

    def compute(
        self,
        own: torch.Tensor,
        reference: torch.Tensor,
        *,
        settings: ProtocolSettings,
        device: torch.device | str,
    ) -> Sequence[float]:
        adm = settings.half_distances and self.features == "pool"  # whose evaluator knows no other features
        rule: Rule = "adm_float16" if adm else "float32"
        return precision_recall(own, reference, neighbours=settings.neighbours, rule=rule, device=device)

    def impossible(self, count: int, reference_count: int | None, settings: ProtocolSettings) -> str | None:
        """Fewer images than neighbours."""
        least, k = min(count, reference_count or count), settings.neighbours
        if least > k:
            return None
        return f"{self.name} needs more than {k} samples and reference images, the smaller set has {least}"

    def warnings(
        self, samples: Mapping[str, Any], reference: Mapping[str, Any] | None, settings: ProtocolSettings
    ) -> list[str]:
        stored = (reference or {}).get("stored_images")
        if stored in (None, 10_000):
            return []
        return [f"precision and recall use {stored} reference images; published ones use 10000"]
