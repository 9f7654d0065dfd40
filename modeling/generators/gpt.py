"""GPT: plain next-token image generation with a LLaMA transformer (LlamaGen, arXiv 2406.06525).

A causal transformer over `class, token_1 ... token_N`: RMS norm, rotary positions, gated MLPs, no biases.

    sequence index     0       1      ...  k         ...  N
    content            class   t[0]        t[k-1]         t[N-1]
    predicts           t[0]    t[1]        t[k]           -

Module and parameter names are those of LlamaGen's released checkpoints.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modeling.generators.base import AutoregressiveGenerator
from modeling.generators.gpt_decoding import GPTDecodeSession
from modeling.layers.rotary import Rotation, grid_rotation, sequence_rotation

_EPS = 1e-5  # of every norm
_STD = 0.02  # of initial weights


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (arXiv 1910.07467); the weight is applied in the dtype of the input."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        return F.rms_norm(x.float(), self.weight.shape, eps=_EPS).to(x.dtype) * self.weight


class RotaryAttention(nn.Module):
    """Multi-head causal self-attention with rotary positions."""

    def __init__(self, *, hidden_size: int, num_heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.wqkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.wo = nn.Linear(hidden_size, hidden_size, bias=False)
        self.drop = nn.Dropout(dropout)

    def heads(self, qkv: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, 3D]` -> turned queries, turned keys, values, `[B, H, T, d]` each; without T, at a single place."""
        joint = qkv.unflatten(-1, (3 * self.num_heads, -1))
        joint = joint.transpose(1, 2) if qkv.ndim == 3 else joint
        both, value = joint.split([2 * self.num_heads, self.num_heads], dim=1)
        query, key = rotation(both).to(value.dtype).chunk(2, dim=1)
        return query, key, value

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        query, key, value = self.heads(self.wqkv(x), rotation)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.drop(self.wo(mixed.transpose(1, 2).flatten(2)))


class GatedMLP(nn.Module):
    """`w2(silu(w1 x) * w3 x)` (SwiGLU, arXiv 2002.05202), then dropout."""

    def __init__(self, *, hidden_size: int, mlp_size: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden_size, mlp_size, bias=False)
        self.w3 = nn.Linear(hidden_size, mlp_size, bias=False)
        self.w2 = nn.Linear(mlp_size, hidden_size, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`."""
        return self.drop(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class GPTBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, *, hidden_size: int, num_heads: int, mlp_size: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention = RotaryAttention(
            hidden_size=hidden_size,
            num_heads=num_heads,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.feed_forward = GatedMLP(hidden_size=hidden_size, mlp_size=mlp_size, dropout=dropout)
        self.attention_norm = RMSNorm(hidden_size)
        self.ffn_norm = RMSNorm(hidden_size)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.feed_forward(self.ffn_norm(x))


class GPT(AutoregressiveGenerator):
    """Class-conditional LLaMA transformer that writes tokens in raster order.

    Args:
        codebook_size: tokens are `0 ... codebook_size - 1`.
        num_classes: labels are `0 ... num_classes - 1`, and `num_classes` for "no class".
        num_tokens: tokens per image (N).
        hidden_size: width D, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_size: inner width of the gated MLPs; LlamaGen takes `8 / 3 * hidden_size`, rounded up to a multiple of 256.
        rope: "2d": a token's place is its row and column in a square grid (LlamaGen). "1d": its place in the row
            of tokens, after the class, for tokens without a grid.
        dropout: on embeddings, attention output and MLP output, in training mode.
        attention_dropout: on attention weights, in training mode.
        activation_checkpointing: recompute blocks in the backward pass instead of storing their activations.

    Raises:
        ValueError: sizes do not fit together, or `rope` is unknown.
    """

    any_order = False

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
        rope: Literal["2d", "1d"] = "2d",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(codebook_size=codebook_size, num_classes=num_classes, num_tokens=num_tokens)
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of num_heads={num_heads}")
        if rope not in ("2d", "1d"):
            raise ValueError(f"rope={rope!r} is unknown; choose 2d, 1d")
        if rope == "2d" and math.isqrt(num_tokens) ** 2 != num_tokens:
            raise ValueError(f"num_tokens={num_tokens} is no square grid; expected n * n tokens, or rope=1d")
        self.hidden_size = hidden_size
        self.depth = depth
        self.num_heads = num_heads
        self.rope = rope
        self.activation_checkpointing = activation_checkpointing
        self.rotation("meta")  # complains about the width of heads, if need be
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, hidden_size)})
        self.tok_embeddings = nn.Embedding(codebook_size, hidden_size)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            GPTBlock(
                hidden_size=hidden_size,
                num_heads=num_heads,
                mlp_size=mlp_size,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(hidden_size)
        self.output = nn.Linear(hidden_size, codebook_size, bias=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal weights and tables (std 0.02), zero output matrix: at first all tokens are equally likely."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD)
        nn.init.zeros_(self.output.weight)

    def rotation(self, device: torch.device | str) -> Rotation:
        """Rotary positions of the N + 1 places of the sequence.

        Computed whenever they are needed, which takes no time, rather than kept as a buffer, which files lack.
        """
        head_dim = self.hidden_size // self.num_heads
        if self.rope == "1d":
            return sequence_rotation(self.num_tokens + 1, head_dim, device)
        return grid_rotation(math.isqrt(self.num_tokens), head_dim, prefix=1, device=device)

    def embed_labels(self, labels: Tensor) -> Tensor:
        """int64 `[...]` labels `0 ... num_classes` -> `[..., D]`."""
        return self.cls_embedding["embedding_table"](labels)

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `[B, N + 1, V]`; see `AutoregressiveGenerator.forward`.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`, or `orders` are given.
        """
        if orders is not None:
            raise ValueError(
                f"orders have shape {list(orders.shape)}, expected None: GPT knows raster order alone; where orders"
                " are annealed (randomness_anneal_start, randomness_anneal_end), anneal from 0 to 0"
            )
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ValueError(f"tokens have shape {list(tokens.shape)}, expected [B, {self.num_tokens}]")
        x = torch.cat([self.embed_labels(labels)[:, None], self.tok_embeddings(tokens)], dim=1)
        x = self.drop(x)
        rotation = self.rotation(x.device)
        for block in self.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, use_reentrant=False)
            else:
                x = block(x, rotation)
        return self.output(self.norm(x))

    def start_decoding(self, labels: Tensor) -> GPTDecodeSession:
        """Begin generating one row per label; see `AutoregressiveGenerator.start_decoding`."""
        return GPTDecodeSession(self, labels)
