"""Incremental decoding of FactorizedAR: one sub-token per step, all caches allocated once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modeling.generators.base import DecodeSession
from modeling.generators.llama_decoding import BlockStep, DecodeStack, frozen

if TYPE_CHECKING:
    from modeling.generators.factorized_ar import FactorizedAR


class FactorizedDecodeSession(DecodeSession):
    """Generation in raster order, sub-token by sub-token, for a fixed list of labels.

    The cache of the sub-tokens has G places, which every token uses anew.

    Args:
        model: the generator; its weights must not change while the session lives.
        labels: int64 `[R]`, `0 ... num_classes`.

    Raises:
        ValueError: a label is out of range.
    """

    @torch.no_grad()
    def __init__(self, model: FactorizedAR, labels: Tensor) -> None:
        self._input = model.embed_labels_checked(labels).clone()  # of the transformer over tokens, so far
        rows, rotation = labels.shape[0], model.rotation(self._input.device)
        self._spatial, self._intra = (
            DecodeStack(
                [BlockStep(block, rows) for block in blocks],
                rotation,
                length=length,
                num_heads=model.num_heads,
                example=self._input,
            )
            for blocks, length in (
                (model.spatial_blocks, model.num_tokens),  # the class and all tokens but the last
                (model.factorized_blocks, len(model.factors)),
            )
        )
        self._tables, self._norm = model.sub_token_tables, model.norm
        self._heads = [frozen(head, rows) for head in model.head]
        self._calls, self._last = 0, model.num_tokens * len(model.factors)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """Logits `[R, factors[k % G]]` of the next sub-token in call k; see `DecodeSession.next_logits`."""
        position, place = divmod(self._calls, len(self._heads))
        first = self._calls == 0
        assert first == (tokens is None) and self._calls < self._last, "None first, N * G calls at most"
        hidden = None if first else self._tables[place - 1](tokens)
        if not first:  # a token's input is the sum of its sub-tokens'
            self._input = hidden.clone() if place == 1 else self._input + hidden
        if place == 0:
            hidden = self._spatial(self._input, position)
        self._calls += 1
        return self._heads[place](self._norm(self._intra(hidden, place)))
