"""Incremental decoding of GPT: one position per step, nothing computed twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.generators.base import DecodeSession
from modeling.generators.cache import KVCache
from modeling.generators.frozen_linear import FrozenLinear
from modeling.layers.rotary import Rotation

if TYPE_CHECKING:
    from modeling.generators.gpt import GPT, GPTBlock


def _frozen(layer: nn.Linear, rows: int) -> FrozenLinear:
    """A layer without bias; `FrozenLinear` wants one, so it gets zeros."""
    biased = nn.Linear(layer.in_features, layer.out_features, device="meta")
    biased.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    biased.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features), requires_grad=False)
    return FrozenLinear(biased, packed_rows=rows)


class _BlockStep:
    """One block at one position: `[R, D] -> [R, D]`, without dropout."""

    def __init__(self, block: GPTBlock, rows: int) -> None:
        self.attention_norm, self.ffn_norm, self.heads = (
            block.attention_norm,
            block.ffn_norm,
            block.attention.heads,
        )
        self.wqkv = _frozen(block.attention.wqkv, rows)
        self.wo = _frozen(block.attention.wo, rows)
        self.w1 = _frozen(block.feed_forward.w1, rows)
        self.w2 = _frozen(block.feed_forward.w2, rows)
        self.w3 = _frozen(block.feed_forward.w3, rows)

    def __call__(self, x: Tensor, rotation: Rotation, cache: KVCache, layer: int, position: int) -> Tensor:
        """Update `x` in place and return it."""
        heads = self.heads(self.wqkv(self.attention_norm(x)), rotation)
        x += self.wo(cache.attend(layer, position, *heads).flatten(1))
        normed = self.ffn_norm(x)
        x += self.w2(F.silu(self.w1(normed), inplace=True).mul_(self.w3(normed)))
        return x


class GPTDecodeSession(DecodeSession):
    """Generation in raster order for a fixed list of labels.

    Args:
        model: the generator; its weights must not change while the session lives.
        labels: int64 `[R]`, `0 ... num_classes`.

    Raises:
        ValueError: a label is out of range.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, labels: Tensor) -> None:
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label <= model.num_classes:
                raise ValueError(f"label {label} is out of range; choose 0 ... {model.num_classes}")
        rows = labels.shape[0]
        self._model = model
        self._labels = model.embed_labels(labels)
        self._blocks = [_BlockStep(block, rows) for block in model.layers]
        self._output = _frozen(model.output, rows)
        device = self._labels.device
        self._rotation = model.rotation(device)
        autocast = torch.is_autocast_enabled(device.type)
        self._cache = KVCache(
            depth=model.depth,
            rows=rows,
            num_heads=model.num_heads,
            length=model.num_tokens,  # the class and all tokens but the last
            head_dim=model.hidden_size // model.num_heads,
            dtype=torch.get_autocast_dtype(device.type) if autocast else self._labels.dtype,
            device=device,
        )
        self._position = 0

    @torch.no_grad()
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """Logits `[R, V]` of the next token; see `DecodeSession.next_logits`."""
        model, position = self._model, self._position
        first = position == 0
        assert first == (tokens is None) and position < model.num_tokens, "None first, N calls at most"
        hidden = self._labels.clone() if first else model.tok_embeddings(tokens)
        rotation = self._rotation.at(position)
        for layer, block in enumerate(self._blocks):
            hidden = block(hidden, rotation, self._cache, layer, position)
        self._position += 1
        return self._output(model.norm(hidden))
