"""The contract of image tokenizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import nn

from modeling.quantizers.posterior import DiagonalGaussian


@dataclass
class TokenizerOutput:
    """Result of a tokenizer's training forward.

    Attributes:
        reconstructions: [B, 3, H, W], not clamped (proxy tokenizers: logits [B, proxy codes, h, w]).
        tokens: int64 [B, N], None for a continuous tokenizer.
        quantized: [B, C, 1, N] (2-D tokenizers: [B, C, h, w]), the input of the decoder.
        losses: unweighted scalars of the bottleneck.
        posterior: distribution of a variational bottleneck, else None.
    """

    reconstructions: torch.Tensor
    tokens: torch.Tensor | None
    quantized: torch.Tensor
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    posterior: DiagonalGaussian | None = None


class Tokenizer(nn.Module, ABC):
    """Images float32 [B, 3, H, W] in [0, 1] to tokens int64 [B, N] and back.

    A continuous tokenizer (`is_discrete` False) has latents [B, C, 1, N] in the place of tokens.

    Attributes:
        image_size: side of the square images it reads and makes.
        needs_text: whether `decode` and `forward` want the features of a caption besides, as an argument
            `text` float [B, text_length, text_width]; `encode` never does.
    """

    image_size: int
    needs_text: bool = False

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens per image, N."""

    @property
    @abstractmethod
    def codebook_size(self) -> int | None:
        """Number of different tokens, None if continuous."""

    @property
    @abstractmethod
    def bits_per_image(self) -> float | None:
        """N log2(codebook_size), None if continuous."""

    @property
    def is_discrete(self) -> bool:
        """Whether `encode` gives tokens (True) or latents (False)."""
        return self.codebook_size is not None

    @property
    def predicts_pixels(self) -> bool:
        """Whether `decode` and `forward` give images (True) or logits over the codes of another tokenizer."""
        return True

    @abstractmethod
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N] of images (continuous: the mode [B, C, 1, N]), the same in training mode."""

    @abstractmethod
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Images of tokens [B, N] (continuous: of latents [B, C, 1, N])."""

    @abstractmethod
    def forward(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> TokenizerOutput:
        """Encode, quantize and decode with gradient; `noise` [B, C, 1, N] is for variational bottlenecks."""
