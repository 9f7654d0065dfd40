"""MaskGIT with a BERT encoder: the generators of TiTok-L-32 and B-64 (arXiv 2406.07550, arXiv 2202.04200).

A bidirectional post-norm transformer over `class, token_1 ... token_N`. Module and parameter names are those of
the released checkpoints, which come from BERT (arXiv 1810.04805).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modeling.generators.base import MaskedGenerator
from modeling.layers.trainable import Block

_EPS = 1e-12  # of every layer norm
_SEGMENTS = (
    2  # rows of the segment table: the first is added everywhere, the second belongs to the checkpoints
)


class Embeddings(nn.Module):
    """Ids `[B, T]` -> layer norm of word + segment + position, `[B, T, D]`, then dropout."""

    def __init__(self, *, num_ids: int, length: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(num_ids, hidden_size)
        self.position_embeddings = nn.Embedding(length, hidden_size)
        self.token_type_embeddings = nn.Embedding(_SEGMENTS, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 `[B, T] -> [B, T, D]`."""
        places = self.token_type_embeddings.weight[0] + self.position_embeddings.weight
        return self.dropout(self.LayerNorm(self.word_embeddings(ids) + places))


class SelfAttention(nn.Module):
    """Multi-head attention without output projection; dropout on the attention weights."""

    def __init__(self, *, hidden_size: int, num_heads: int, attention_dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        query, key, value = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2)


class ResidualOutput(nn.Module):
    """`LN(residual + dropout(dense(x)))`: the end of both halves of a layer."""

    def __init__(self, *, input_size: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """`[..., input_size]` and `[..., D]` -> `[..., D]`."""
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class Attention(nn.Module):
    """Self-attention with residual and norm."""

    def __init__(self, *, hidden_size: int, num_heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.self = SelfAttention(
            hidden_size=hidden_size, num_heads=num_heads, attention_dropout=attention_dropout
        )
        self.output = ResidualOutput(input_size=hidden_size, hidden_size=hidden_size, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        return self.output(self.self(x), x)


class Intermediate(nn.Module):
    """Linear and exact GELU."""

    def __init__(self, *, hidden_size: int, mlp_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, mlp_size)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D] -> [..., mlp_size]`."""
        return F.gelu(self.dense(x))


class BertBlock(Block):
    """Post-norm transformer block."""

    def __init__(
        self, *, hidden_size: int, num_heads: int, mlp_size: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(
            hidden_size=hidden_size,
            num_heads=num_heads,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.intermediate = Intermediate(hidden_size=hidden_size, mlp_size=mlp_size)
        self.output = ResidualOutput(input_size=mlp_size, hidden_size=hidden_size, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        x = self.attention(x)
        return self.output(self.intermediate(x), x)


class MaskGIT(MaskedGenerator):
    """Class-conditional masked transformer in the layout of BERT.

    Args:
        codebook_size: tokens are `0 ... codebook_size - 1`; `codebook_size` is the mask.
        num_classes: labels are `0 ... num_classes - 1`, and `num_classes` for "no class".
        num_tokens: tokens per image (N).
        hidden_size: width D, a multiple of `num_heads`.
        depth: number of layers.
        num_heads: attention heads.
        mlp_size: inner width of the MLPs.
        dropout: on embeddings, attention output and MLP output, in training mode.
        attention_dropout: on attention weights, in training mode.
        activation_checkpointing: recompute layers in the backward pass instead of storing their activations.

    Raises:
        ValueError: a size is out of range.
    """

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
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(codebook_size=codebook_size, num_classes=num_classes, num_tokens=num_tokens)
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of num_heads={num_heads}")
        self.activation_checkpointing = activation_checkpointing
        layers = nn.ModuleList(
            BertBlock(
                hidden_size=hidden_size,
                num_heads=num_heads,
                mlp_size=mlp_size,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(depth)
        )
        embeddings = Embeddings(
            num_ids=self.num_ids, length=num_tokens + 1, hidden_size=hidden_size, dropout=dropout
        )
        self.model = nn.ModuleDict(
            {
                "embeddings": embeddings,
                "encoder": nn.ModuleDict({"layer": layers}),
                "lm_head": nn.Linear(hidden_size, codebook_size),
            }
        )
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal (std 0.02) weights and tables, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits `[B, N, V]`; see `MaskedGenerator.forward`.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`.
        """
        x = self.model["embeddings"](self.input_ids(tokens, labels))
        for layer in self.model["encoder"]["layer"]:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return self.model["lm_head"](x[:, 1:])
