"""MaskGIT with a BERT encoder: the generators of TiTok-L-32 and B-64 (arXiv 2406.07550, arXiv 2202.04200).

A bidirectional post-norm transformer over `class, token_1 ... token_N`. Module and parameter names are those of
the released checkpoints, which come from BERT (arXiv 1810.04805).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from modeling.generators.base import MaskedGenerator
from modeling.layers.attention import check_heads
from modeling.layers.initialization import init_weights
from modeling.layers.trainable import Block, run_block

_EPS = 1e-12  # of every layer norm
_SEGMENTS = 2  # rows of the segment table: the first is added everywhere, checkpoints also hold a second


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
        query, key, value = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, T, d]
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
        return self.output(self.self(x), x)


class Intermediate(nn.Module):
    """Linear and exact GELU."""

    def __init__(self, *, hidden_size: int, mlp_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, mlp_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class BertBlock(Block):
    """Post-norm transformer block."""

    def __init__(
        self, *, hidden_size: int, num_heads: int, mlp_size: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        drops = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.attention = Attention(hidden_size=hidden_size, num_heads=num_heads, **drops)
        self.intermediate = Intermediate(hidden_size=hidden_size, mlp_size=mlp_size)
        self.output = ResidualOutput(input_size=mlp_size, hidden_size=hidden_size, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return self.output(self.intermediate(x), x)


class MaskGIT(MaskedGenerator):
    """Class-conditional masked transformer in the layout of BERT."""

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
        dropout: float = 0.0,  # on embeddings, attention output and MLP output
        attention_dropout: float = 0.0,  # on attention weights
        activation_checkpointing: bool = False,  # recompute layers in the backward pass
    ) -> None:
        super().__init__(codebook_size=codebook_size, num_classes=num_classes, num_tokens=num_tokens)
        check_heads(hidden_size, num_heads)
        self.activation_checkpointing = activation_checkpointing
        sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "mlp_size": mlp_size}
        drops = {"dropout": dropout, "attention_dropout": attention_dropout}
        layers = nn.ModuleList(BertBlock(**sizes, **drops) for _ in range(depth))
        table = {"num_ids": self.num_ids, "length": num_tokens + 1, "hidden_size": hidden_size}
        self.model = nn.ModuleDict(  # the nesting gives the names of the checkpoints
            {
                "embeddings": Embeddings(**table, dropout=dropout),
                "encoder": nn.ModuleDict({"layer": layers}),
                "lm_head": nn.Linear(hidden_size, codebook_size),
            }
        )
        init_weights(self)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.model["embeddings"](self.input_ids(tokens, labels))
        for layer in self.model["encoder"]["layer"]:
            x = run_block(layer, x, activation_checkpointing=self.activation_checkpointing)
        return self.model["lm_head"](x[:, 1:])  # the class predicts nothing
