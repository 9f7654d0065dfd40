"""What every quantizer returns, and the contract it fulfils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import nn

from modeling.quantizers.posterior import DiagonalGaussian


@dataclass
class QuantizerOutput:
    """Result of a quantizer.

    Attributes:
        quantized: [B, C, H, W] (1-D tokenizers: H = 1, W = N), float32, carries the gradient to the encoder.
        tokens: int64 [B, H * W] row-major, or None for a continuous bottleneck.
        losses: unweighted scalars; weights belong to the training task.
        posterior: the distribution of a variational bottleneck, else None.
    """

    quantized: torch.Tensor
    tokens: torch.Tensor | None
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    posterior: DiagonalGaussian | None = None


class Quantizer(nn.Module, ABC):
    """Maps encoder latents to what the decoder receives; computes in float32 whatever the autocast state.

    Attributes:
        codebook_size: number of codes, None for a continuous bottleneck.
        code_dim: channels handed to the decoder.
        latent_channels: channels expected from the encoder.
        bits_per_token: log2(codebook_size), None for a continuous bottleneck.
        entropy_weight: weight of the entropy term among its losses, 0 without one.
    """

    codebook_size: int | None
    code_dim: int
    latent_channels: int
    bits_per_token: float | None
    entropy_weight: float = 0.0

    @abstractmethod
    def forward(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize latents [B, latent_channels, H, W]; `noise` is for stochastic bottlenecks only."""

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents on the scale of the codes, float32, with gradient: what an infinitely fine codebook would emit."""
        return latents.float()

    @abstractmethod
    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decoder input [B, code_dim, 1, N] of tokens [B, N]."""

    @abstractmethod
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Tokens [B, H * W] of latents (continuous: the mode [B, C, H, W]), without any side effect."""
