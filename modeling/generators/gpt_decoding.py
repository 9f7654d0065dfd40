"""Incremental decoding of GPT: one position per step, nothing computed twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modeling.generators.llama_decoding import BlockStep, DecodeStack, TokenDecodeSession, frozen

if TYPE_CHECKING:
    from modeling.generators.gpt import GPT


class GPTDecodeSession(TokenDecodeSession):
    """Generation in raster order for a fixed list of labels.

    Args:
        model: the generator; its weights must not change while the session lives.
        labels: int64 `[R]`, `0 ... num_classes`.

    Raises:
        ValueError: a label is out of range.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, labels: Tensor) -> None:
        start = model.embed_labels_checked(labels)
        rows = labels.shape[0]
        output = frozen(model.output, rows)
        stack = DecodeStack(
            [BlockStep(block, rows) for block in model.layers],
            model.rotation(start.device),
            length=model.num_tokens,  # the class and all tokens but the last
            num_heads=model.num_heads,
            example=start,
        )
        super().__init__(
            start=start,
            stack=stack,
            embed=model.tok_embeddings,
            finish=lambda hidden: output(model.norm(hidden)),
            num_tokens=model.num_tokens,
        )
