"""RAR: randomized autoregressive image generation (arXiv 2411.00776).

A causal transformer over `cls, class, token_1 ... token_N`. In training the tokens may come in any order; a
target-aware positional table tells each position where the token lies that it has to predict:

    sequence index     0      1       2        ...  k+2       ...  N+1
    content            cls    class   t[o_0]        t[o_k]         t[o_{N-1}]
    own place  (P)     0      1       2+o_0         2+o_k          2+o_{N-1}
    next place (Q)     -      2+o_0   2+o_1         2+o_{k+1}      -
    step       (S)     0      1       2             k+2            N+1
    predicts           -      t[o_0]  t[o_1]        t[o_{k+1}]     -

Module and parameter names are those of the released checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.generators.base import AutoregressiveGenerator, DecodeSession
from modeling.generators.cache import KVCache
from modeling.generators.frozen_linear import FrozenLinear
from modeling.generators.orders import permute_tokens
from modeling.layers.adaln import ModulatedNorm, Modulation, activate, modulate
from modeling.layers.attention import check_heads
from modeling.layers.initialization import init_weights
from modeling.layers.mlp import MLP
from modeling.layers.trainable import Block, run_block

_EPS = 1e-6  # of every layer norm
_PREFIX = 2  # sequence positions before the first token: cls and class
# adaLN products are computed for as many positions at a time as fit here. One big product reads its weights
# once, where a product per step would read a third of the model in every step. All positions at once would
# take 114 MB per distinct label for RAR-B and 348 MB for RAR-XXL in float32.
_MODULATION_BYTES = 128 * 2**20


class CausalAttention(nn.Module):
    """Multi-head causal self-attention with layer norm on queries and keys."""

    def __init__(self, *, hidden_size: int, num_heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=_EPS)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=_EPS)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.proj_drop = nn.Dropout(dropout)

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[..., 3D]` -> normed queries, normed keys, values; `[..., H, d]` each, of one dtype."""
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        # Under autocast layer norm returns float32; the fused kernels want one dtype for all three.
        return self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype), value

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2) for t in self.heads(self.qkv(x)))
        dropout = self.attention_dropout if self.training else 0.0
        # No mask tensor: that would rule out the flash kernel.
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))  # [B, H, T, d] -> [B, T, D]


class RARBlock(Block):
    """Pre-norm transformer block with adaLN shifts, scales and gates."""

    stacked = {"attn.qkv.weight": 3, "adaLN_modulation.1.weight": 6}

    def __init__(
        self, *, hidden_size: int, num_heads: int, mlp_size: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=_EPS)
        drops = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.attn = CausalAttention(hidden_size=hidden_size, num_heads=num_heads, **drops)
        self.norm2 = nn.LayerNorm(hidden_size, eps=_EPS)
        self.mlp = MLP(hidden_size=hidden_size, mlp_size=mlp_size, dropout=dropout)
        self.adaLN_modulation = Modulation(hidden_size=hidden_size, chunks=6)

    def forward(self, x: Tensor, activated: Tensor, rows: Tensor | None) -> Tensor:
        """Training pass over `x` `[B, T, D]`.

        Args:
            activated: `[R, T, D]`, the distinct conditions after SiLU.
            rows: int64 `[B]`, which condition a sample has; None if sample b has condition b (`R = B`).
        """
        modulation = self.adaLN_modulation.project(activated)
        if rows is not None:  # after the projection: the distinct conditions are fewer than the samples
            modulation = modulation.index_select(0, rows)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        x = x + gate_a * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class RAR(AutoregressiveGenerator):
    """Class-conditional autoregressive transformer with per-position adaLN."""

    def __init__(
        self,
        *,
        codebook_size: int,
        num_classes: int,
        num_tokens: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_size: int,
        dropout: float = 0.0,  # on attention output, after GELU and on MLP output
        attention_dropout: float = 0.0,  # on attention weights
        extra_position_rows: int = 1024,  # of both positional tables beyond N; two are used, checkpoints hold 1024
        extra_step_rows: int = 100,  # of the step table beyond N; two are used, checkpoints hold 100
        activation_checkpointing: bool = False,  # recompute blocks in the backward pass
    ) -> None:
        super().__init__(codebook_size=codebook_size, num_classes=num_classes, num_tokens=num_tokens)
        check_heads(hidden_size, num_heads)
        extras = ("extra_position_rows", extra_position_rows), ("extra_step_rows", extra_step_rows)
        for key, value in extras:
            if value < _PREFIX:
                raise ValueError(f"{key}={value} must be at least {_PREFIX}: cls and class need a row each")
        self.hidden_size = hidden_size
        self.depth = depth
        self.num_heads = num_heads
        self.activation_checkpointing = activation_checkpointing
        position_rows = num_tokens + extra_position_rows
        self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_size))
        self.pos_embed = nn.Parameter(torch.empty(1, position_rows, hidden_size))
        self.target_aware_pos_embed = nn.Parameter(torch.empty(1, position_rows, hidden_size))
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, num_tokens + extra_step_rows, hidden_size))
        sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "mlp_size": mlp_size}
        drops = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.blocks = nn.ModuleList(RARBlock(**sizes, **drops) for _ in range(depth))
        # Rows: codebook, a mask that only the checkpoints need, classes, "no class".
        self.embeddings = nn.Embedding(codebook_size + 1 + num_classes + 1, hidden_size)
        self.adaln_before_head = ModulatedNorm(hidden_size=hidden_size, eps=_EPS)
        self.lm_head = nn.Linear(hidden_size, codebook_size)
        self._initialise()

    def _initialise(self) -> None:
        init_weights(self, nn.init.trunc_normal_)
        for table in (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        nn.init.zeros_(self.cls_token)
        for module in self.modules():
            if isinstance(module, Modulation):
                module.zero_()  # adaLN-Zero: every block begins as the identity

    def embed_labels(self, labels: Tensor) -> Tensor:
        """int64 `[...]` labels `0 ... num_classes` -> `[..., D]`."""
        return self.embeddings(labels + (self.codebook_size + 1))

    def _embed_sequence(self, tokens: Tensor, labels: Tensor, orders: Tensor | None) -> Tensor:
        """Input of the first block, `[B, N + 2, D]` (table in the module docstring)."""
        batch, num_tokens = tokens.shape
        own, target = self.pos_embed[0], self.target_aware_pos_embed[0]
        places = slice(_PREFIX, _PREFIX + num_tokens) if orders is None else orders + _PREFIX
        own_places, target_places = (
            table[places][None] if orders is None else F.embedding(places, table) for table in (own, target)
        )
        first = (self.embed_labels(labels) + own[1])[:, None]
        content = torch.cat([first, self.embeddings(permute_tokens(tokens, orders)) + own_places], dim=1)
        content = content + F.pad(target_places, (0, 0, 0, 1))  # the last position has nothing to predict
        cls = (self.cls_token + own[0]).expand(batch, -1, -1)
        return torch.cat([cls, content], dim=1)

    def _conditions(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Activated conditions `silu(E[label] + S[i])`, `[R, N + 2, D]`, and the row of each sample (None: its own)."""
        steps = self.timesteps_embeddings[0, : self.num_tokens + _PREFIX]
        rows = None
        # adaLN is a third of the linear work. In batches larger than the number of classes, samples of one class share
        # it: all classes get a row, which keeps shapes static and does not wait for the labels.
        if labels.shape[0] > self.num_classes + 1:
            rows, labels = labels, torch.arange(self.num_classes + 1, device=labels.device)
        return activate(self.embed_labels(labels)[:, None] + steps), rows

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `[B, N + 1, V]`; see `AutoregressiveGenerator.forward`."""
        self.check_tokens(tokens)
        x = self._embed_sequence(tokens, labels, orders)
        activated, rows = self._conditions(labels)
        for block in self.blocks:
            x = run_block(block, x, activated, rows, activation_checkpointing=self.activation_checkpointing)
        modulation = self.adaln_before_head.adaLN_modulation.project(activated[:, 1:])  # cls predicts nothing
        if rows is not None:
            modulation = modulation.index_select(0, rows)
        return self.lm_head(self.adaln_before_head(x[:, 1:], modulation))

    def start_decoding(self, labels: Tensor) -> DecodeSession:
        return RARDecodeSession(self, labels)


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
        scales = modulation.unflatten(-1, (2, 3, -1))[..., 1, :]  # (shift, scale, gate) of both sub-layers
        scales += 1  # once here, instead of at every step
        return modulation

    def __call__(self, x: Tensor, modulation: Tensor, cache: KVCache, layer: int, position: int) -> Tensor:
        """Update `x` `[R, D]` in place and return it; `modulation` `[R, 6D]` comes from `modulate`."""
        shift_a, gain_a, gate_a, shift_m, gain_m, gate_m = modulation.chunk(6, dim=-1)
        heads = self.heads(self.qkv(torch.addcmul(shift_a, self.norm1(x), gain_a)))
        mixed = cache.attend(layer, position, *heads)
        x.addcmul_(gate_a, self.proj(mixed.flatten(1)))
        return x.addcmul_(gate_m, self.fc2(self.fc1(torch.addcmul(shift_m, self.norm2(x), gain_m))))


class RARDecodeSession(DecodeSession):
    """Generation in raster order."""

    @torch.no_grad()
    def __init__(self, model: RAR, labels: Tensor) -> None:
        model.check_labels(labels)
        distinct, self._rows = labels.unique(return_inverse=True)  # unconditional rows share their adaLN
        self._model = model
        self._labels = model.embed_labels(distinct)
        self._blocks = [_BlockStep(block, labels.shape[0]) for block in model.blocks]
        self._head_modulation = FrozenLinear(model.adaln_before_head.adaLN_modulation.linear)
        count = model.num_tokens
        # Row k: both positional tables at sequence position k + 1, which predicts token k.
        self._places = model.pos_embed[0, 1 : count + 1] + model.target_aware_pos_embed[0, 2 : count + 2]
        sizes = {"depth": model.depth, "rows": labels.shape[0], "num_heads": model.num_heads}
        # N + 1 positions: cls, class and all tokens but the last.
        self._cache = KVCache(**sizes, length=count + 1, example=self._labels)
        values = (6 * model.depth + 2) * model.hidden_size * distinct.shape[0]
        self._chunk = min(max(_MODULATION_BYTES // (values * self._cache.dtype.itemsize), 1), count + 1)
        self._chunk_start = 0
        self._modulations: list[Tensor] = []
        self._position = 0

    @torch.no_grad()
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        model = self._model
        first = self._position == 0
        assert first == (tokens is None) and self._position <= model.num_tokens, "None first, N calls at most"
        if first:
            cls = (model.cls_token[0] + model.pos_embed[0, :1]).expand(self._rows.shape[0], -1)
            self._advance(cls.clone())  # fills the cache; its output predicts nothing
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
        """adaLN products from position `start`: `[positions, distinct labels, 6D]` per layer, then 2D for the head."""
        model = self._model
        stop = min(start + self._chunk, model.num_tokens + 1)
        self._modulations.clear()  # frees the previous chunk before the next one is made
        self._chunk_start = start
        steps = model.timesteps_embeddings[0, start:stop]
        activated = activate(steps[:, None] + self._labels)
        self._modulations = [block.modulate(activated) for block in self._blocks]
        self._modulations.append(self._head_modulation(activated))
