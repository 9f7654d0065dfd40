"""Incremental decoding of IBQTransformer: the class is projected once, then one position per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modeling.generators.llama_decoding import DecodeStack, ModulatedBlockStep, TokenDecodeSession, frozen
from modeling.layers.adaln import activate

if TYPE_CHECKING:
    from modeling.generators.ibq_ar import IBQTransformer


class IBQDecodeSession(TokenDecodeSession):
    """Generation in raster order for a fixed list of labels.

    Args:
        model: the generator; its weights must not change while the session lives.
        labels: int64 `[R]`, `0 ... num_classes`.

    Raises:
        ValueError: a label is out of range.
    """

    @torch.no_grad()
    def __init__(self, model: IBQTransformer, labels: Tensor) -> None:
        condition = model.embed_labels_checked(labels)
        rows, activated = labels.shape[0], activate(condition)
        head, (scale, shift) = frozen(model.head, rows), model.head_nm.scale_and_shift(condition)
        stack = DecodeStack(
            [ModulatedBlockStep(block, rows, activated) for block in model.blocks],
            model.rotation(condition.device),
            length=model.num_tokens,  # the class and all tokens but the last
            num_heads=model.num_heads,
            example=condition,
        )
        super().__init__(
            start=condition,
            stack=stack,
            embed=model.tok_emb,
            finish=lambda hidden: head(model.head_nm(hidden, scale, shift)),
            num_tokens=model.num_tokens,
        )
