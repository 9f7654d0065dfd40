"""Endless training order and one-pass evaluation order, as functions of the seed and the position alone.

The example at a position follows from the source's order (``data.order``); the random numbers of its transform come
from a counter-based generator keyed by (seed, position). Nothing is carried from one position to the next, so any
worker of any process can make any position, and a run that resumes at a position sees what the uninterrupted run saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from data.order import EVALUATION, TRANSFORM, philox
from data.source import CorruptSample, Source

Batch = dict[str, Any]  # "images" or "tokens", "labels", "positions", "skipped", "captions" (texts)

_MOST_IN_A_ROW = 100  # unreadable examples: more of them are a broken data set


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
        self._order = source.order(seed)

    def __reduce__(self) -> tuple:
        # Workers that are not forked make the order anew: a pickled one would carry its permutations along.
        return partial(TrainStream, self.source, seed=self.seed), ()

    def example(self, position: int) -> int:
        """Index in the source of the example shown at ``position``."""
        return self._order.example(position)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        indices = [self.example(position) for position in positions]
        skipped: list[str] = []
        try:
            rngs = [philox(self.seed, position, TRANSFORM) for position in positions]
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
                item, _ = self.source.load(candidate, philox(self.seed, position, TRANSFORM))
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
            items = self.source.load_many(kept, [philox(0, position, EVALUATION) for position in kept])
        except CorruptSample:
            readable, kept = [], []
            for position in positions:
                try:
                    readable.append(self.source.load(position, philox(0, position, EVALUATION))[0])
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
