"""UViT: a masked generator with long skip connections, of TiTok-S-128 (arXiv 2406.07550; U-ViT, arXiv 2209.12152).

A bidirectional pre-norm transformer over `class, token_1 ... token_N`. The first half of the blocks keeps its
outputs; the second half merges them in again, the last one first. Module and parameter names are those of the
released checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.generators.base import MaskedGenerator
from modeling.layers.attention import check_heads
from modeling.layers.initialization import init_weights
from modeling.layers.mlp import MLP
from modeling.layers.trainable import Block, run_block

_EPS = 1e-5  # of every layer norm


class JointAttention(nn.Module):
    """Multi-head bidirectional self-attention; queries, keys and values come from one projection without bias."""

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # [B, T, H, d] each
        heads = (part.transpose(1, 2) for part in (query, key, value))
        return self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class UViTBlock(Block):
    """Pre-norm transformer block; with `skip` it first merges an earlier output into its input."""

    stacked = {"attn.qkv.weight": 3}

    def __init__(self, *, hidden_size: int, num_heads: int, mlp_size: int, skip: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=_EPS)
        self.attn = JointAttention(hidden_size=hidden_size, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=_EPS)
        self.mlp = MLP(hidden_size=hidden_size, mlp_size=mlp_size, dropout=0.0)
        if skip:
            self.skip_linear = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, x: Tensor, skipped: Tensor | None = None) -> Tensor:
        if skipped is not None:  # [B, T, D], as x
            x = self.skip_linear(torch.cat([x, skipped], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(MaskedGenerator):
    """Class-conditional masked transformer with long skip connections; it has no dropout."""

    def __init__(
        self,
        *,
        codebook_size: int,
        num_classes: int,
        num_tokens: int,
        hidden_size: int,
        depth: int,  # depth // 2 blocks before the middle block and as many after it
        num_heads: int,
        mlp_size: int,
        activation_checkpointing: bool = False,  # recompute blocks in the backward pass
    ) -> None:
        super().__init__(codebook_size=codebook_size, num_classes=num_classes, num_tokens=num_tokens)
        check_heads(hidden_size, num_heads)
        self.activation_checkpointing = activation_checkpointing
        sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "mlp_size": mlp_size}
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens + 1, hidden_size))
        self.embeddings = nn.Embedding(self.num_ids, hidden_size)
        self.in_blocks = nn.ModuleList(UViTBlock(**sizes) for _ in range(depth // 2))
        self.mid_block = UViTBlock(**sizes)
        self.out_blocks = nn.ModuleList(UViTBlock(**sizes, skip=True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(hidden_size, eps=_EPS)
        self.lm_head = nn.Linear(hidden_size, codebook_size)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        init_weights(self, nn.init.trunc_normal_)

    def _run(self, block: UViTBlock, x: Tensor, skipped: Tensor | None = None) -> Tensor:
        return run_block(block, x, skipped, activation_checkpointing=self.activation_checkpointing)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embeddings(self.input_ids(tokens, labels)) + self.pos_embed
        kept = []
        for block in self.in_blocks:
            x = self._run(block, x)
            kept.append(x)
        x = self._run(self.mid_block, x)
        for block in self.out_blocks:
            x = self._run(block, x, kept.pop())
        return self.lm_head(self.norm(x[:, 1:]))  # the class predicts nothing
