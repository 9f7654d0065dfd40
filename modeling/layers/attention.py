"""Bidirectional multi-head self-attention with the parameter names of `torch.nn.MultiheadAttention`."""

import torch
from torch import nn
from torch.nn import functional as F


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raise ValueError unless `num_heads` divides `hidden_size`."""
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(f"hidden_size={hidden_size} must be a multiple of num_heads={num_heads}")


class SelfAttention(nn.Module):
    """Softmax self-attention without mask, dropout or positional term, computed by the fused kernel.

    Unlike `nn.MultiheadAttention` it always takes the fused path in training, and can restrict queries to the rows
    whose outputs are used. The state-dict layout is the same.
    """

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        check_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))  # query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_size))
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: torch.Tensor, rows: slice | None = None) -> torch.Tensor:
        """Attend from the tokens `rows` (None: all) of x [B, L, D] to all tokens; [B, len(rows), D]."""
        batch, _, width = x.shape
        if rows is None:
            query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:  # fewer queries, all keys and values
            query = F.linear(x[:, rows], self.in_proj_weight[:width], self.in_proj_bias[:width])
            key, value = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(self._heads(query), self._heads(key), self._heads(value))
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, -1, width))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, L, H * d] -> [B, H, L, d], a view
