"""Incremental decoding of LLaMA blocks: one position per step, nothing computed twice."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling.generators.base import DecodeSession
from modeling.generators.cache import KVCache
from modeling.generators.frozen_linear import FrozenLinear
from modeling.generators.raster import RasterGenerator
from modeling.layers.adaln import modulate
from modeling.layers.llama import LlamaBlock, ModulatedLlamaBlock
from modeling.layers.rotary import Rotation


class BlockStep:
    """One block at one position, without dropout: updates `x` `[R, D]` in place and returns it."""

    def __init__(self, block: LlamaBlock, rows: int) -> None:
        self.attention_norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        self.heads, mlp = block.attention.heads, block.feed_forward
        self.wqkv = FrozenLinear(block.attention.wqkv, packed_rows=rows)
        self.wo = FrozenLinear(block.attention.wo, packed_rows=rows)
        self.w1, self.w2, self.w3 = (FrozenLinear(w, packed_rows=rows) for w in (mlp.w1, mlp.w2, mlp.w3))

    def attend(self, normed: Tensor, rotation: Rotation, cache: KVCache, layer: int, position: int) -> Tensor:
        """The attention sub-layer, `[R, D] -> [R, D]`."""
        heads = self.heads(self.wqkv(normed), rotation)
        return self.wo(cache.attend(layer, position, *heads).flatten(1))

    def feed(self, normed: Tensor) -> Tensor:
        """The MLP, `[R, D] -> [R, D]`."""
        return self.w2(F.silu(self.w1(normed), inplace=True).mul_(self.w3(normed)))  # in place: no gradients

    def __call__(self, x: Tensor, rotation: Rotation, cache: KVCache, layer: int, position: int) -> Tensor:
        x += self.attend(self.attention_norm(x), rotation, cache, layer, position)
        x += self.feed(self.ffn_norm(x))
        return x


class ModulatedBlockStep(BlockStep):
    """One modulated block at one position."""

    def __init__(self, block: ModulatedLlamaBlock, rows: int, activated: Tensor) -> None:
        super().__init__(block, rows)
        self.parts = block.ada_lin.project(activated).chunk(6, dim=-1)  # the same at all positions

    def __call__(self, x: Tensor, rotation: Rotation, cache: KVCache, layer: int, position: int) -> Tensor:
        gate, mlp_gate, scale, mlp_scale, shift, mlp_shift = self.parts
        normed = modulate(self.attention_norm(x), shift, scale)
        x += gate * self.attend(normed, rotation, cache, layer, position)
        x += mlp_gate * self.feed(modulate(self.ffn_norm(x), mlp_shift, mlp_scale))
        return x


class DecodeStack:
    """The block steps of a model and their cache of `length` positions.

    `example` `[R, D]` tells rows, width, dtype and device.
    """

    def __init__(
        self, model: RasterGenerator, steps: Iterable[BlockStep], length: int, example: Tensor
    ) -> None:
        self._steps, self._rotation = list(steps), model.rotation(example.device)
        sizes = {"depth": len(self._steps), "rows": example.shape[0], "num_heads": model.num_heads}
        self._cache = KVCache(**sizes, length=length, example=example)

    def __call__(self, x: Tensor, position: int) -> Tensor:
        """Update `x` `[R, D]` in place and return it. Position 0 begins anew and overwrites the cache."""
        rotation = self._rotation.at(position)
        for layer, step in enumerate(self._steps):
            x = step(x, rotation, self._cache, layer, position)
        return x


class TokenDecodeSession(DecodeSession):
    """Generation in raster order with one softmax per token.

    Args:
        start: `[R, D]`, the input at the first position.
        embed: int64 tokens `[R]` -> their inputs `[R, D]`.
        finish: output of the last block `[R, D]` -> logits `[R, V]`.
    """

    def __init__(
        self,
        model: RasterGenerator,
        steps: Iterable[BlockStep],
        start: Tensor,
        embed: Callable[[Tensor], Tensor],
        finish: Callable[[Tensor], Tensor],
    ) -> None:
        self._start, self._embed, self._finish = start, embed, finish
        self._num_tokens, self._position = model.num_tokens, 0
        # N positions: the class and all tokens but the last.
        self._stack = DecodeStack(model, steps, model.num_tokens, start)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        position = self._position
        first = position == 0
        assert first == (tokens is None) and position < self._num_tokens, "None first, N calls at most"
        hidden = self._stack(self._start.clone() if first else self._embed(tokens), position)
        self._position += 1
        return self._finish(hidden)
