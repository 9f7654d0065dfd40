"""Incremental decoding of LLaMA blocks: one position per step, nothing computed twice."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.generators.base import DecodeSession
from modeling.generators.cache import KVCache
from modeling.generators.frozen_linear import FrozenLinear
from modeling.layers.adaln import modulate
from modeling.layers.llama import LlamaBlock, ModulatedLlamaBlock
from modeling.layers.rotary import Rotation


def frozen(layer: nn.Linear, rows: int) -> FrozenLinear:
    """A layer without bias for `rows` rows; `FrozenLinear` wants a bias, so it gets zeros."""
    biased = nn.Linear(layer.in_features, layer.out_features, device="meta")
    biased.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    biased.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features), requires_grad=False)
    return FrozenLinear(biased, packed_rows=rows)


class BlockStep:
    """One block at one position: `[R, D] -> [R, D]`, without dropout."""

    def __init__(self, block: LlamaBlock, rows: int) -> None:
        self.attention_norm, self.ffn_norm, self.heads = (
            block.attention_norm,
            block.ffn_norm,
            block.attention.heads,
        )
        self.wqkv = frozen(block.attention.wqkv, rows)
        self.wo = frozen(block.attention.wo, rows)
        self.w1 = frozen(block.feed_forward.w1, rows)
        self.w2 = frozen(block.feed_forward.w2, rows)
        self.w3 = frozen(block.feed_forward.w3, rows)

    def attend(self, normed: Tensor, rotation: Rotation, cache: KVCache, layer: int, position: int) -> Tensor:
        """The attention sub-layer, `[R, D] -> [R, D]`."""
        heads = self.heads(self.wqkv(normed), rotation)
        return self.wo(cache.attend(layer, position, *heads).flatten(1))

    def feed(self, normed: Tensor) -> Tensor:
        """The MLP, `[R, D] -> [R, D]`."""
        return self.w2(F.silu(self.w1(normed), inplace=True).mul_(self.w3(normed)))

    def __call__(self, x: Tensor, rotation: Rotation, cache: KVCache, layer: int, position: int) -> Tensor:
        """Update `x` in place and return it."""
        x += self.attend(self.attention_norm(x), rotation, cache, layer, position)
        x += self.feed(self.ffn_norm(x))
        return x


class ModulatedBlockStep(BlockStep):
    """One modulated block at one position; the condition is projected once for all positions."""

    def __init__(self, block: ModulatedLlamaBlock, rows: int, activated: Tensor) -> None:
        super().__init__(block, rows)
        self.parts = block.ada_lin.project(activated).chunk(6, dim=-1)

    def __call__(self, x: Tensor, rotation: Rotation, cache: KVCache, layer: int, position: int) -> Tensor:
        """Update `x` in place and return it."""
        gate, mlp_gate, scale, mlp_scale, shift, mlp_shift = self.parts
        normed = modulate(self.attention_norm(x), shift, scale)
        x += gate * self.attend(normed, rotation, cache, layer, position)
        x += mlp_gate * self.feed(modulate(self.ffn_norm(x), mlp_shift, mlp_scale))
        return x


class DecodeStack:
    """Blocks and their cache, allocated once.

    Args:
        steps: the blocks.
        rotation: of `length` places or more.
        length: positions that the cache holds.
        num_heads: of every block.
        example: `[R, D]`, tells rows, width, dtype and device.
    """

    def __init__(
        self, steps: Sequence[BlockStep], rotation: Rotation, *, length: int, num_heads: int, example: Tensor
    ) -> None:
        self._steps, self._rotation = list(steps), rotation
        self._cache = KVCache(
            depth=len(self._steps),
            rows=example.shape[0],
            num_heads=num_heads,
            length=length,
            example=example,
        )

    def __call__(self, x: Tensor, position: int) -> Tensor:
        """Update `x` `[R, D]` in place and return it. Position 0 begins anew: what was cached is forgotten."""
        rotation = self._rotation.at(position)
        for layer, step in enumerate(self._steps):
            x = step(x, rotation, self._cache, layer, position)
        return x


class TokenDecodeSession(DecodeSession):
    """Generation in raster order with one softmax per token, for a fixed list of labels.

    Args:
        start: `[R, D]`, the input at the first position.
        stack: the blocks.
        embed: int64 tokens `[R]` -> their inputs `[R, D]`.
        finish: output of the last block `[R, D]` -> logits `[R, V]`.
        num_tokens: tokens per image.
    """

    def __init__(
        self,
        *,
        start: Tensor,
        stack: DecodeStack,
        embed: Callable[[Tensor], Tensor],
        finish: Callable[[Tensor], Tensor],
        num_tokens: int,
    ) -> None:
        self._start, self._stack, self._embed, self._finish = start, stack, embed, finish
        self._num_tokens, self._position = num_tokens, 0

    @torch.no_grad()
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """Logits `[R, V]` of the next token; see `DecodeSession.next_logits`."""
        position = self._position
        first = position == 0
        assert first == (tokens is None) and position < self._num_tokens, "None first, N calls at most"
        hidden = self._stack(self._start.clone() if first else self._embed(tokens), position)
        self._position += 1
        return self._finish(hidden)
