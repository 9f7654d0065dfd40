"""What every quantizer returns, and the contract it fulfils."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensor

from modeling.layers.trainable import Replicated
from modeling.quantizers.posterior import DiagonalGaussian


@dataclass
class QuantizerOutput:
    """Result of a quantizer."""

    quantized: torch.Tensor  # [B, C, H, W] (1-D: H = 1, W = N), float32, with gradient to the encoder
    tokens: torch.Tensor | None  # int64 [B, H * W] row-major, None for a continuous bottleneck
    losses: dict[str, torch.Tensor] = field(default_factory=dict)  # scalars; the task weighs them
    posterior: DiagonalGaussian | None = None  # of a variational bottleneck


@dataclass
class CodebookUpdate:
    """What `Quantizer.update_codebook` did."""

    revived: torch.Tensor | None = None  # scalar, codes moved to a fresh place; None if codes only follow


class Quantizer(Replicated, ABC):
    """Maps encoder latents to what the decoder receives; computes in float32 whatever the autocast state.

    `forward` changes no state, in training mode either. Codes that move without a gradient move in `update_codebook`,
    which the training step calls. All constructors raise ValueError for values out of range.
    """

    codebook_size: int | None  # number of codes K, None for a continuous bottleneck
    code_dim: int  # channels handed to the decoder
    latent_channels: int  # channels expected from the encoder
    bits_per_token: float | None  # log2(K), None for a continuous bottleneck
    entropy_weight: float = 0.0  # of the entropy term among its losses; 0 without one

    @abstractmethod
    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents [B, latent_channels, H, W]."""

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents on the scale of the codes, float32, with gradient: what an infinitely fine codebook would emit."""
        return latents.float()

    @abstractmethod
    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decoder input [B, code_dim, 1, N] of tokens [B, N]."""

    def check_range(self, tokens: torch.Tensor) -> None:
        """Raise ValueError for a token that is no code: arithmetic would wrap it silently.

        On a device other than the CPU nothing is read, because that would wait; `modeling.pipeline.decode` does.
        """
        if tokens.device.type != "cpu" or not tokens.numel() or isinstance(tokens, FakeTensor):
            return
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(f"tokens from {low} to {high}, expected 0 ... {self.codebook_size - 1}")

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
        """Move the codes after a training forward made `tokens` of `latents`, and before its backward pass.

        Every call moves them once more, by the batch of all processes, and reads nothing back from the device. Returns
        None if the codes learn by gradient alone or cannot move, as by default.
        """
        return None


class CodebookQuantizer(Quantizer):
    """Base of quantizers that choose a row of a table for every latent; subclasses own the table.

    The table has `codebook_size` = K rows of `code_dim` = C channels. Methods with `rows` see the latents as [M, C],
    with M = B * H * W.
    """

    moves = False  # whether `update_codebook` moves codes

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

    def _rows(self, latents: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> float32 [M, C]
        return latents.float().permute(0, 2, 3, 1).reshape(-1, self.code_dim)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):  # rounding changes the nearest code
            quantized, tokens, losses = self._quantize(self._rows(latents))
        return QuantizerOutput(
            quantized=quantized.view(batch, height, width, -1).permute(0, 3, 1, 2),  # [M, C] -> [B, C, H, W]
            tokens=tokens.view(batch, height * width),
            losses=losses,
        )

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._select(tokens).transpose(1, 2).unsqueeze(2)  # [B, N, C] -> [B, C, 1, N]

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self._nearest(self._rows(latents)).view(latents.shape[0], -1)

    @torch.no_grad()
    def update_codebook(self, latents: torch.Tensor, tokens: torch.Tensor) -> CodebookUpdate | None:
        if not self.moves:  # codes that learn by gradient alone
            return None
        with torch.autocast(latents.device.type, enabled=False):
            return self._move(self._rows(latents), tokens.flatten())
