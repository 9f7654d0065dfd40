"""Adaptive layer norm with a projected condition (adaLN-Zero, arXiv 2212.09748, section 3.2)."""

import torch
from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`; all `[..., D]`, broadcast against each other."""
    return x * (1 + scale) + shift


class Modulation(nn.Sequential):
    """SiLU and a linear layer: one condition vector becomes `chunks` vectors (shifts, scales, gates).

    Callers with many layers `activate` the condition once and use `project`; `forward` does both.
    """

    def __init__(self, *, hidden_size: int, chunks: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(hidden_size, chunks * hidden_size))

    @property
    def linear(self) -> nn.Linear:
        return self[1]  # the SiLU before it has no weights

    def project(self, activated: Tensor) -> Tensor:
        """`[..., D]` condition after SiLU -> `[..., chunks * D]`."""
        return self.linear(activated)

    def zero_(self) -> None:
        """Zero weight and bias: gates start closed, so a new block is the identity (hence adaLN-Zero)."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)


class ModulatedNorm(nn.Module):
    """Layer norm without own weights, scaled and shifted by the condition; sits before an output head."""

    def __init__(self, *, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=eps, elementwise_affine=False)
        self.adaLN_modulation = Modulation(hidden_size=hidden_size, chunks=2)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """`x [..., D]`, `modulation [..., 2D]` (the projected condition) -> `[..., D]`."""
        scale, shift = modulation.chunk(2, dim=-1)  # as released RARs; in their blocks shift comes first
        return modulate(self.norm(x), shift, scale)


def activate(condition: Tensor) -> Tensor:
    """The SiLU that precedes every `Modulation.project`."""
    return torch.nn.functional.silu(condition)
