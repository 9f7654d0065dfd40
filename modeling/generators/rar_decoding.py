"""Incremental decoding of RAR: one position per step, nothing computed twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modeling.generators.base import DecodeSession
from modeling.generators.cache import KVCache
from modeling.generators.frozen_linear import FrozenLinear
from modeling.layers.adaln import activate

if TYPE_CHECKING:
    from modeling.generators.rar import RAR, RARBlock

# adaLN products are computed for as many positions at a time as fit here. One big product reads its weights
# once, where a product per step would read a third of the model in every step. All positions at once would
# take 114 MB per distinct label for RAR-B and 348 MB for RAR-XXL in float32.
_MODULATION_BYTES = 128 * 2**20


class _BlockStep:
    """One block at one position: `[R, D] -> [R, D]`, without dropout."""

    def __init__(self, block: RARBlock, rows: int) -> None:
        self.norm1, self.norm2, self.heads = block.norm1, block.norm2, block.attn.heads
        self.qkv = FrozenLinear(block.attn.qkv, packed_rows=rows)
        self.proj = FrozenLinear(block.attn.proj, packed_rows=rows)
        self.fc1 = FrozenLinear(block.mlp.fc1, packed_rows=rows, gelu=True)
        self.fc2 = FrozenLinear(block.mlp.fc2, packed_rows=rows)
        self.modulation = FrozenLinear(block.adaLN_modulation.linear)

    def modulate(self, activated: Tensor) -> Tensor:
        """Activated conditions `[..., D]` -> `[..., 6D]`, with 1 already added to both scales."""
        modulation = self.modulation(activated)
        scales = modulation.unflatten(-1, (2, 3, -1))[..., 1, :]
        scales += 1
        return modulation

    def __call__(self, x: Tensor, modulation: Tensor, cache: KVCache, layer: int, position: int) -> Tensor:
        """Update `x` in place and return it; `modulation [R, 6D]` comes from `modulate`."""
        shift_a, gain_a, gate_a, shift_m, gain_m, gate_m = modulation.chunk(6, dim=-1)
        heads = self.heads(self.qkv(torch.addcmul(shift_a, self.norm1(x), gain_a)))
        mixed = cache.attend(layer, position, *heads)
        x.addcmul_(gate_a, self.proj(mixed.flatten(1)))
        return x.addcmul_(gate_m, self.fc2(self.fc1(torch.addcmul(shift_m, self.norm2(x), gain_m))))


class RARDecodeSession(DecodeSession):
    """Generation in raster order for a fixed list of labels.

    What depends on position alone (both positional tables) is combined once. What depends on position and
    label (adaLN) is computed once per distinct label, so all unconditional rows share one.

    Args:
        model: the generator; its weights must not change while the session lives.
        labels: int64 `[R]`, `0 ... num_classes`.

    Raises:
        ValueError: a label is out of range.
    """

    @torch.no_grad()
    def __init__(self, model: RAR, labels: Tensor) -> None:
        distinct, self._rows = labels.unique(return_inverse=True)  # sorted
        for label in (int(distinct[0]), int(distinct[-1])):
            if not 0 <= label <= model.num_classes:
                raise ValueError(f"label {label} is out of range; choose 0 ... {model.num_classes}")
        self._model = model
        self._labels = model.embed_labels(distinct)
        self._blocks = [_BlockStep(block, labels.shape[0]) for block in model.blocks]
        self._head_modulation = FrozenLinear(model.adaln_before_head.adaLN_modulation.linear)
        count, device = model.num_tokens, self._labels.device
        # Row k: sequence position k + 1, which predicts token k.
        self._places = model.pos_embed[0, 1 : count + 1] + model.target_aware_pos_embed[0, 2 : count + 2]
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self._labels.dtype
        self._cache = KVCache(
            depth=model.depth,
            rows=labels.shape[0],
            num_heads=model.num_heads,
            length=count + 1,
            head_dim=model.hidden_size // model.num_heads,
            dtype=dtype,
            device=device,
        )
        values = (6 * model.depth + 2) * model.hidden_size * distinct.shape[0]
        self._chunk = min(max(_MODULATION_BYTES // (values * dtype.itemsize), 1), count + 1)
        self._chunk_start = 0
        self._modulations: list[Tensor] = []
        self._position = 0

    @torch.no_grad()
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """Logits `[R, V]` of the next token; see `DecodeSession.next_logits`."""
        model = self._model
        first = self._position == 0
        assert first == (tokens is None) and self._position <= model.num_tokens, "None first, N calls at most"
        if first:
            cls = (model.cls_token[0] + model.pos_embed[0, :1]).expand(self._rows.shape[0], -1)
            self._advance(cls.clone())
            content = self._labels.index_select(0, self._rows)
        else:
            content = model.embeddings(tokens)
        hidden = self._advance(content + self._places[self._position - 1])
        modulation = self._modulations[-1][self._position - 1 - self._chunk_start]
        return model.lm_head(model.adaln_before_head(hidden, modulation.index_select(0, self._rows)))

    def _advance(self, hidden: Tensor) -> Tensor:
        """Run the blocks on the next position, `[R, D]` in place, and count it."""
        position = self._position
        if position % self._chunk == 0:
            self._modulate_chunk(position)
        offset = position - self._chunk_start
        for layer, block in enumerate(self._blocks):
            modulation = self._modulations[layer][offset].index_select(0, self._rows)
            hidden = block(hidden, modulation, self._cache, layer, position)
        self._position += 1
        return hidden

    def _modulate_chunk(self, start: int) -> None:
        """adaLN products of positions `start ...`: `[positions, distinct labels, 6D]` per layer, then
        `[positions, distinct labels, 2D]` for the head."""
        model = self._model
        stop = min(start + self._chunk, model.num_tokens + 1)
        self._modulations.clear()  # frees the previous chunk before the next one is made
        self._chunk_start = start
        steps = model.timesteps_embeddings[0, start:stop]
        activated = activate(steps[:, None] + self._labels)
        self._modulations = [block.modulate(activated) for block in self._blocks]
        self._modulations.append(self._head_modulation(activated))
