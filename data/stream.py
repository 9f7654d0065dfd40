"""Endless training order and one-pass evaluation order, as functions of the seed and the position alone.

Position p of a training run belongs to epoch ``p // n`` and shows example ``permutation(seed, epoch)[p % n]``;
the random numbers of its transform come from a counter-based generator keyed by (seed, p). Nothing is carried from
one position to the next, so any worker of any process can make any position, and a run that resumes at a position
sees what the uninterrupted run saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data.source import CorruptSample, Source

Batch = dict[str, Any]  # "images" or "tokens", "labels", "positions", "skipped", "captions" (texts)

# The last word of Philox's 256-bit counter tells the uses of one key apart.
_SHUFFLE, _TRANSFORM, _EVALUATION = 1, 2, 3
_MOST_IN_A_ROW = 100  # unreadable examples: more of them are a broken data set


def philox(seed: int, number: int, purpose: int) -> np.random.Generator:
    """Generator keyed by (seed, number), independent for every ``purpose``; all arguments >= 0."""
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.array([0, 0, 0, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


class TrainStream:
    """Endless shuffled examples of a source by position; every epoch shows each example once.

    A corrupt example is replaced by the one that follows it in the source and named in the batch.
    """

    def __init__(self, source: Source, *, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        if len(source) == 0:
            raise ValueError("the data set has no examples")
        self.source = source
        self.seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def example(self, position: int) -> int:
        """Index in the source of the example shown at ``position``."""
        epoch, offset = divmod(position, len(self.source))
        if epoch not in self._permutations:
            # A batch may straddle two epochs, so the one before is kept too; older ones are not needed again.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            dtype = np.uint32 if len(self.source) < 2**32 else np.uint64  # half the memory in every worker
            order = np.arange(len(self.source), dtype=dtype)
            philox(self.seed, epoch, _SHUFFLE).shuffle(order)
            self._permutations[epoch] = order
        return int(self._permutations[epoch][offset])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        indices = [self.example(position) for position in positions]
        skipped: list[str] = []
        try:
            rngs = [philox(self.seed, position, _TRANSFORM) for position in positions]
            items = self.source.load_many(indices, rngs)
        except CorruptSample:
            pairs = [self._load_or_replace(p, i, skipped) for p, i in zip(positions, indices, strict=True)]
            items = torch.stack([item for item, _ in pairs])
            indices = [index for _, index in pairs]
        return _batch(self.source, items, indices, positions, skipped)

    def _load_or_replace(self, position: int, index: int, skipped: list[str]) -> tuple[torch.Tensor, int]:
        """Item and index actually shown at ``position``; unreadable ones are named in ``skipped``."""
        attempts = min(len(self.source), _MOST_IN_A_ROW)
        for attempt in range(attempts):
            candidate = (index + attempt) % len(self.source)
            try:
                # A fresh generator each time: a failed attempt may have drawn from it.
                item, _ = self.source.load(candidate, philox(self.seed, position, _TRANSFORM))
                return item, candidate
            except CorruptSample as error:
                skipped.append(str(error))
        raise ValueError(f"{attempts} examples in a row cannot be read; the last is {skipped[-1]}")


class EvalStream:
    """Examples of a source in its own order, each with a fixed generator; corrupt ones are omitted and named."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        skipped: list[str] = []
        kept = list(positions)
        try:
            items = self.source.load_many(kept, [philox(0, position, _EVALUATION) for position in kept])
        except CorruptSample:
            readable, kept = [], []
            for position in positions:
                try:
                    readable.append(self.source.load(position, philox(0, position, _EVALUATION))[0])
                    kept.append(position)
                except CorruptSample as error:
                    skipped.append(str(error))
            dtype = torch.uint8 if self.source.item_key == "images" else torch.int64
            empty = torch.empty((0, *self.source.item_shape), dtype=dtype)
            items = torch.stack(readable) if readable else empty
        return _batch(self.source, items, kept, kept, skipped)


def _batch(
    source: Source, items: torch.Tensor, indices: Sequence[int], positions: Sequence[int], skipped: list[str]
) -> Batch:
    labels = source.labels[np.asarray(indices, dtype=np.int64)]
    batch: Batch = {
        source.item_key: items,
        "labels": torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        "positions": torch.tensor(positions, dtype=torch.int64),
        "skipped": skipped,
    }
    if source.has_captions:
        batch["captions"] = source.captions(indices)
    return batch
