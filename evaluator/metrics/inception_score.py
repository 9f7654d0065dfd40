"""Inception Score (arXiv:1606.03498) as a stream: exp of the mean KL of class predictions from their average."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from common import distributed
from evaluator.metrics.base import Metric
from evaluator.protocol import ProtocolSettings

ROWS = 4096  # predictions widened to float64 at a time


class ScoreResult(NamedTuple):
    """Mean and population standard deviation of the score over the splits."""

    mean: float
    std: float


class InceptionScore:
    """Score per split from two sums, so that no prediction is kept; reduced once over processes.

    The published tools split differently, and larger splits score higher. Name the setting with the number:

    * torch-fidelity: `splits=10, order="shuffled", num_images=N`;
    * ADM's evaluator: `block=5000` (as stored; images sorted by class score far too low);
    * training-time evaluators of tokenizers: one split, the default.

    Args:
        splits: number of nearly equal splits; split i is [i N // splits, (i + 1) N // splits).
            1 if no `block` is given.
        order: "stored" takes images by position, "shuffled" by `RandomState(seed).permutation(N)`.
        block: size of consecutive splits instead of `splits`; the last may be shorter and weighs the same.
        num_images: N over all processes; needed for more than one split by number and for "shuffled".
        num_classes: logits per image (1008 in the 2015 network, unused slots included).

    Raises:
        ValueError: settings are out of range or contradict each other, or `num_images` is missing.
    """

    def __init__(
        self,
        *,
        splits: int | None = None,
        order: Literal["stored", "shuffled"] = "stored",
        block: int | None = None,
        num_images: int | None = None,
        num_classes: int = 1008,
        seed: int = 2020,
    ) -> None:
        if order not in ("stored", "shuffled"):
            raise ValueError(f"order={order!r} must be 'stored' or 'shuffled'")
        if splits is not None and block is not None:
            raise ValueError(f"splits={splits} and block={block} exclude each other")
        if min(splits or 1, block or 1, num_classes) < 1 or 0 in (splits, block):
            raise ValueError(
                f"splits={splits}, block={block} and num_classes={num_classes} must be at least 1"
            )
        self.block, self.num_images = block, num_images
        self.splits = None if block else splits or 1
        if num_images is None and (order == "shuffled" or (self.splits or 1) > 1):
            raise ValueError(
                f"num_images must be known for order={order!r} with splits={splits}, block={block}"
            )
        if num_images is not None and num_images < (self.splits or 1):
            raise ValueError(f"num_images={num_images} cannot fill {self.splits} splits")
        self._places = self._ends = None
        if order == "shuffled":
            permutation = np.random.RandomState(seed).permutation(num_images)
            self._places = torch.from_numpy(np.argsort(permutation))  # image permutation[j] comes j-th
        if self.splits is not None and self.splits > 1:
            self._ends = torch.tensor([(i + 1) * num_images // self.splits for i in range(self.splits)])
        self._classes, self._seen = num_classes, 0
        # Per split: the sum of p over images for every class, then the sum of p log p over both, then the count.
        self.sums = torch.zeros(0, num_classes + 2, dtype=torch.float64)

    @torch.no_grad()
    def update(self, logits: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add logits [B, num_classes] (without the classifier's bias) of the images at `positions`, int64 [B].

        Without positions images follow one another, which only a single process or a single split allows.

        Raises:
            ValueError: shapes are wrong, positions out of range or missing, or values not finite.
        """
        if logits.ndim != 2 or logits.shape[1] != self._classes:
            raise ValueError(f"logits have shape {tuple(logits.shape)}, expected [B, {self._classes}]")
        if positions is None:
            if distributed.is_active() and self.splits != 1:
                raise ValueError("positions are needed when several processes share the splits")
            positions = torch.arange(self._seen, self._seen + len(logits))
        positions = positions.detach().cpu().long()
        if positions.shape != logits.shape[:1]:
            raise ValueError(f"{tuple(positions.shape)} positions for {len(logits)} images")
        self._seen += len(logits)
        for part, places in zip(logits.detach().split(ROWS), positions.split(ROWS), strict=True):
            part = part.cpu().double()
            if not torch.isfinite(part).all():
                raise ValueError("logits hold values that are not finite")
            log_p = part.log_softmax(dim=1)  # [b, classes]
            p = log_p.exp()
            rows = torch.cat([p, (p * log_p).sum(1, keepdim=True), p.new_ones(len(p), 1)], dim=1)
            split = self._split_of(places)
            self._grow(int(split.max()) + 1 if len(split) else 0)
            self.sums.index_add_(0, split, rows)

    def _split_of(self, positions: torch.Tensor) -> torch.Tensor:
        limit = math.inf if self.num_images is None else self.num_images
        if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < limit:
            raise ValueError(
                f"positions from {int(positions.min())} to {int(positions.max())}, expected 0 ... {limit} - 1"
            )
        places = positions if self._places is None else self._places[positions]
        if self.block:
            return places // self.block
        if self._ends is None:
            return torch.zeros_like(places)
        return torch.searchsorted(self._ends, places, right=True)  # ends are exclusive

    def _grow(self, splits: int) -> None:
        if splits > len(self.sums):
            more = self.sums.new_zeros(splits - len(self.sums), self.sums.shape[1])
            self.sums = torch.cat([self.sums, more])

    def result(self, device: torch.device | str = "cpu") -> ScoreResult:
        """Score over all processes, all of which must call it.

        Raises:
            ValueError: no image was counted, or another number than `num_images`.
        """
        self._grow(max(distributed.gather_objects(len(self.sums))))  # by blocks, ranks may know fewer splits
        sums = self.sums
        if distributed.is_active():
            sums = distributed.all_reduce_sum(sums.to(device)).cpu()
        counts = sums[:, -1]
        total = int(counts.sum())
        if total == 0 or (self.num_images is not None and total != self.num_images):
            raise ValueError(f"{total} images were counted, expected {self.num_images or 'at least 1'}")
        sums, counts = sums[counts > 0], counts[counts > 0]  # positions may skip whole blocks
        average = sums[:, :-2] / counts[:, None]
        # Mean KL(p || average) = mean of sum p log p - sum average log average; xlogy: 0 log 0 = 0.
        divergence = sums[:, -2] / counts - torch.xlogy(average, average).sum(1)
        scores = divergence.exp()
        return ScoreResult(float(scores.mean()), float(scores.std(correction=0)))


class InceptionScoreMetric(Metric):
    """Inception Score with the splits of the protocol."""

    compares = "nothing"
    counted = True
    spread = True
    keeps = InceptionScore

    def collector(self, dim: int, settings: ProtocolSettings, num_images: int | None) -> InceptionScore:
        splitting = {"splits": settings.is_splits, "order": settings.is_order, "block": settings.is_block}
        return InceptionScore(**splitting, num_images=num_images, num_classes=dim)

    def compute(self, own: ScoreResult, reference: None, **_: Any) -> Sequence[float]:
        return own if own.std else own[:1]  # a single split has no spread, and 0 would look like one

    def impossible(self, count: int, reference_count: int | None, settings: ProtocolSettings) -> str | None:
        """Fewer images than splits."""
        if count >= (settings.is_splits or 1):
            return None
        return f"{self.name} has {settings.is_splits} splits, and there are {count} samples"

    def warnings(
        self, samples: Mapping[str, Any], reference: Mapping[str, Any] | None, settings: ProtocolSettings
    ) -> list[str]:
        # Splits of images in class order see only some of the classes.
        in_order = samples.get("labels", {}).get("in_class_order")
        if not in_order or settings.is_order != "stored" or settings.is_splits == 1:
            return []
        return ["samples are stored in class order, which makes the Inception Score of this protocol useless"]
