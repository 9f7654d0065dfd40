"""Pre-norm transformer blocks (ViT, arXiv:2010.11929) in the layout that TiTok checkpoints use."""

from collections import OrderedDict

import torch
from torch import nn

from modeling.layers.attention import SelfAttention
from modeling.layers.trainable import Block, run_block

MLP_RATIO = 4


class TransformerBlock(Block):
    """x + attention(LN(x)), then x + MLP(LN(x)); exact GELU, LayerNorm eps 1e-5, no dropout."""

    stacked = {"attn.in_proj_weight": 3}

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden_size)
        self.attn = SelfAttention(hidden_size=hidden_size, num_heads=num_heads)
        self.ln_2 = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(hidden_size, MLP_RATIO * hidden_size),
                gelu=nn.GELU(),
                c_proj=nn.Linear(MLP_RATIO * hidden_size, hidden_size),
            )
        )

    def forward(self, x: torch.Tensor, rows: slice | None = None) -> torch.Tensor:
        """[B, L, D] -> [B, L, D]; with `rows` only those positions are computed and returned."""
        residual = x if rows is None else x[:, rows]
        x = residual + self.attn(self.ln_1(x), rows)
        return x + self.mlp(self.ln_2(x))


def run_blocks(
    blocks: nn.ModuleList, x: torch.Tensor, rows: slice, activation_checkpointing: bool = False
) -> torch.Tensor:
    """Run all blocks and return only the positions `rows` of the result.

    x is [B, L, D], the result [B, len(rows), D].
    """
    # Nothing after the last block reads the other positions, so that block computes queries and MLP for `rows` alone:
    # the same numbers for less work (one third of an encoder block at 65 patch and 32 latent positions).
    last = len(blocks) - 1
    for index, block in enumerate(blocks):
        wanted = rows if index == last else None
        x = run_block(block, x, wanted, activation_checkpointing=activation_checkpointing)
    return x
