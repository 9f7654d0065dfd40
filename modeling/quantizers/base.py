"""What every quantizer returns, and the contract it fulfils."""

from __future__ import annotations

import math
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


@dataclass
class CodebookUpdate:
    """What `Quantizer.update_codebook` did.

    Attributes:
        revived: scalar tensor, how many codes moved to a fresh place; None if codes only follow their latents.
    """

    revived: torch.Tensor | None = None


class Quantizer(nn.Module, ABC):
    """Maps encoder latents to what the decoder receives; computes in float32 whatever the autocast state.

    `forward` changes no state, in training mode either. Codes that move without a gradient move in
    `update_codebook`, which the training step calls.

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
    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents [B, latent_channels, H, W]."""

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents on the scale of the codes, float32, with gradient: what an infinitely fine codebook would emit."""
        return latents.float()

    @abstractmethod
    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decoder input [B, code_dim, 1, N] of tokens [B, N]."""

    @abstractmethod
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Tokens [B, H * W] of latents (continuous: the mode [B, C, H, W]), without gradient."""

    @property
    def codebook_started(self) -> bool:
        """Whether the codes can be used; if not, `start_codebook` comes first. May wait for the device."""
        return True

    def start_codebook(self, latents: torch.Tensor) -> None:
        """Put the codes on latents [B, latent_channels, H, W] of all processes; by default nothing happens."""

    def update_codebook(self, latents: torch.Tensor, tokens: torch.Tensor) -> CodebookUpdate | None:
        """Move the codes after one training forward, and before its backward pass.

        Every call moves them once more, by the batch of all processes. Nothing is read back from the device.

        Args:
            latents: [B, latent_channels, H, W] that `forward` received.
            tokens: [B, H * W] that it returned.

        Returns:
            What happened; None if the codes learn by gradient alone or cannot move, as by default.
        """
        return None


class CodebookQuantizer(Quantizer):
    """Base of quantizers that choose a row of a table for every latent. Subclasses own the table.

    Args:
        codebook_size: number of codes K.
        code_dim: channels C of latents and codes.

    Attributes:
        moves: whether `update_codebook` moves codes.

    Raises:
        ValueError: a size is below 1.
    """

    moves = False

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        if codebook_size < 1 or code_dim < 1:
            raise ValueError(f"codebook_size={codebook_size} and code_dim={code_dim} must be at least 1")
        self.codebook_size, self.code_dim, self.latent_channels = codebook_size, code_dim, code_dim
        self.bits_per_token = math.log2(codebook_size)

    @abstractmethod
    def _select(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes [..., C], float32, of tokens [...]."""

    @abstractmethod
    def _nearest(self, rows: torch.Tensor) -> torch.Tensor:
        """Tokens [M] of rows [M, C], without gradient."""

    def _quantize(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """What is emitted for rows [M, C] with gradient [M, C], tokens [M], and losses."""
        raise NotImplementedError

    def _move(self, rows: torch.Tensor, tokens: torch.Tensor) -> CodebookUpdate:
        """Move codes by rows [M, C] of this process, and the codes chosen for them, tokens [M]."""
        raise NotImplementedError

    def _rows(self, latents: torch.Tensor) -> torch.Tensor:
        """Float32 rows [B * H * W, C] of latents [B, C, H, W]."""
        return latents.float().permute(0, 2, 3, 1).reshape(-1, self.code_dim)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Replace every latent of [B, C, H, W] by a code."""
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            quantized, tokens, losses = self._quantize(self._rows(latents))
        return QuantizerOutput(
            quantized=quantized.view(batch, height, width, -1).permute(0, 3, 1, 2),
            tokens=tokens.view(batch, height * width),
            losses=losses,
        )

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes of tokens [B, N] as [B, C, 1, N]."""
        return self._select(tokens).transpose(1, 2).unsqueeze(2)

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Tokens [B, H * W] of latents [B, C, H, W]."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._nearest(self._rows(latents)).view(latents.shape[0], -1)

    @torch.no_grad()
    def update_codebook(self, latents: torch.Tensor, tokens: torch.Tensor) -> CodebookUpdate | None:
        """See `Quantizer`; None unless this codebook `moves`."""
        if not self.moves:
            return None
        with torch.autocast(latents.device.type, enabled=False):
            return self._move(self._rows(latents), tokens.flatten())
