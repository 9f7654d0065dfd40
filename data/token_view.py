"""Token files read as longer rows of smaller tokens; the files themselves always hold whole tokens."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from data.source import Source


class SplitTokens(Source):
    """Another source's tokens, every one split into `parts` that stand together: int64 [N parts].

    `split` maps tokens [..., N] to their parts [..., N, parts]; workers that are not forked pickle it. ValueError: the
    source gives no tokens.
    """

    item_key = "tokens"

    def __init__(self, source: Source, split: Callable[[Tensor], Tensor], parts: int) -> None:
        if source.item_key != "tokens":
            raise ValueError(f"a source of {source.item_key} has no tokens to be split")
        self._source, self._split = source, split
        self.class_names = source.class_names
        self.item_shape = (source.item_shape[0] * parts,)

    @property
    def labels(self) -> np.ndarray:  # not kept: a pickled memory map would carry all labels along
        return self._source.labels

    def load(self, index: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        tokens, label = self._source.load(index, rng)
        return self._split(tokens).flatten(-2), label

    def load_many(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> Tensor:
        return self._split(self._source.load_many(indices, rngs)).flatten(-2)
