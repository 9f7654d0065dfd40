"""Blocks of LLaMA transformers (arXiv 2302.13971): RMS norm, rotary attention, gated MLPs, no biases.

Parameter names are those of LlamaGen's, Open-MAGVIT2's and IBQ's released checkpoints.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.layers.adaln import Modulation, activate, modulate
from modeling.layers.rotary import Rotation
from modeling.layers.trainable import Block, run_block

_EPS = 1e-5  # of every norm


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (arXiv 1910.07467); the weight is applied in the dtype of the input."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=_EPS).to(x.dtype) * self.weight


class RotaryAttention(nn.Module):
    """Multi-head causal self-attention with rotary positions."""

    def __init__(
        self, *, hidden_size: int, num_heads: int, dropout: float, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.wqkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.wo = nn.Linear(hidden_size, hidden_size, bias=False)
        self.drop = nn.Dropout(dropout)

    def heads(self, qkv: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, T, 3D]` -> turned queries, turned keys, values, `[B, H, T, d]` each; without T, at a single place."""
        joint = qkv.unflatten(-1, (3 * self.num_heads, -1))  # [B, T, 3H, d]
        joint = joint.transpose(1, 2) if qkv.ndim == 3 else joint
        both, value = joint.split([2 * self.num_heads, self.num_heads], dim=1)
        query, key = rotation(both).to(value.dtype).chunk(2, dim=1)  # turned in float32
        return query, key, value

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
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
        return self.drop(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class LlamaBlock(Block):
    """Pre-norm transformer block."""

    stacked = {"attention.wqkv.weight": 3}

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        mlp_size: int,
        dropout: float,  # on attention output and MLP output
        attention_dropout: float = 0.0,  # on attention weights
    ) -> None:
        super().__init__()
        drops = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.attention = RotaryAttention(hidden_size=hidden_size, num_heads=num_heads, **drops)
        self.feed_forward = GatedMLP(hidden_size=hidden_size, mlp_size=mlp_size, dropout=dropout)
        self.attention_norm = RMSNorm(hidden_size)
        self.ffn_norm = RMSNorm(hidden_size)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.feed_forward(self.ffn_norm(x))


class ModulatedLlamaBlock(LlamaBlock):
    """`LlamaBlock` with adaptive norms and gates (IBQ, arXiv 2412.02692; adaLN of arXiv 2212.09748)."""

    stacked = {**LlamaBlock.stacked, "ada_lin.1.weight": 6}

    def __init__(self, *, hidden_size: int, num_heads: int, mlp_size: int, dropout: float) -> None:
        super().__init__(hidden_size=hidden_size, num_heads=num_heads, mlp_size=mlp_size, dropout=dropout)
        self.ada_lin = Modulation(hidden_size=hidden_size, chunks=6)

    def forward(self, x: Tensor, rotation: Rotation, activated: Tensor) -> Tensor:
        """`x [B, T, D]`, `activated [B, D]` (condition after SiLU) -> `[B, T, D]`."""
        parts = self.ada_lin.project(activated)[:, None].chunk(6, dim=-1)
        gate, mlp_gate, scale, mlp_scale, shift, mlp_shift = parts  # the order of released checkpoints
        x = x + gate * self.attention(modulate(self.attention_norm(x), shift, scale), rotation)
        return x + mlp_gate * self.feed_forward(modulate(self.ffn_norm(x), mlp_shift, mlp_scale))


class ModulatedRMSNorm(nn.Module):
    """RMS norm whose result is scaled and shifted by the condition; sits before an output head."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.rmsnorm = RMSNorm(hidden_size)
        self.ada_lin = Modulation(hidden_size=hidden_size, chunks=2)

    def scale_and_shift(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Condition `[B, D]` -> scale and shift, `[B, D]` each."""
        scale, shift = self.ada_lin.project(activate(condition)).chunk(2, dim=-1)
        return scale, shift

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """`[..., D] -> [..., D]`; scale and shift broadcast against `x`."""
        return modulate(self.rmsnorm(x), shift, scale)


def run_llama_blocks(
    blocks: Iterable[LlamaBlock], x: Tensor, *inputs: object, activation_checkpointing: bool
) -> Tensor:
    """All blocks in turn, `[B, T, D] -> [B, T, D]`; `inputs`, the rotation and perhaps a condition, go to each."""
    for block in blocks:
        x = run_block(block, x, *inputs, activation_checkpointing=activation_checkpointing)
    return x
