"""The contract of image tokenizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from modeling.layers.trainable import Trainable
from modeling.quantizers.base import CodebookUpdate, Quantizer, QuantizerOutput
from modeling.quantizers.posterior import DiagonalGaussian

# Statistics of a codebook, which tokenizers of other options lack.
USAGE, REVIVALS = "quantize.embed_prob", "quantize.revivals"


@dataclass
class TokenizerOutput:
    """Result of a tokenizer's training forward.

    Attributes:
        reconstructions: [B, 3, H, W], not clamped, or what else the tokenizer learns: [B, *prediction_shape].
        tokens: int64 [B, N], None for a continuous tokenizer.
        quantized: [B, C, 1, N] (2-D tokenizers: [B, C, h, w]), the input of the decoder.
        losses: unweighted scalars of the bottleneck.
        posterior: distribution of a variational bottleneck, else None.
        latents: [B, latent_channels, h, w], what the bottleneck received, without gradient; None if it is frozen.
    """

    reconstructions: torch.Tensor
    tokens: torch.Tensor | None
    quantized: torch.Tensor
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    posterior: DiagonalGaussian | None = None
    latents: torch.Tensor | None = None


class Tokenizer(Trainable, ABC):
    """Images float32 [B, 3, H, W] in [0, 1] to tokens int64 [B, N] and back.

    A continuous tokenizer (`is_discrete` False) has latents [B, C, 1, N] in the place of tokens.

    Attributes:
        parts: keywords of the constructor that are modules with YAML sections of their own, in the order in which they
            are built (`modeling.factory`).
        quantize: the bottleneck.
        image_size: side of the square images it reads and makes.
        downscale: pixels per token along a side, for tokenizers that take images of any size; None for one size only.
        learns: what training compares the output of `forward` with, a key of `training.tasks.TOKENIZER_TASKS`:
            the "pixels" of the images, the "codes" of another tokenizer, the "features" of a frozen network;
            "codebook" fits the codes to such features and trains nothing else.
        frozen_encoder: encoder and codes are those of a finished tokenizer, and training leaves them as they are.
        copies_teacher: training starts from parts of another tokenizer, its teacher (`copy_teacher`).
        new_parts: prefixes of entries that a finished tokenizer need not have to be started from (`copy_weights`).
        last_layer: weight of the last layer of a convolutional decoder, where adaptive loss weights compare gradients.
        needs_text: whether `decode` and `forward` want the features of a caption besides, as an argument
            `text` float [B, text_length, text_width]; `encode` never does.
        section: the YAML section that it was built from, if it was.
    """

    parts: tuple[str, ...] = ("quantizer",)
    quantize: Quantizer
    image_size: int
    downscale: int | None = None
    learns: Literal["pixels", "codes", "features", "codebook"] = "pixels"
    frozen_encoder: bool = False
    copies_teacher: bool = False
    new_parts: tuple[str, ...] = ()
    last_layer: nn.Parameter | None = None
    needs_text: bool = False
    text_length: int = 0
    text_width: int = 0
    section: dict[str, Any] | None = None

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens per image, N."""

    @property
    def codebook_size(self) -> int | None:
        """Number of different tokens, None if continuous."""
        return self.quantize.codebook_size

    @property
    def bits_per_image(self) -> float | None:
        """N log2(codebook_size), None if continuous."""
        bits = self.quantize.bits_per_token
        return None if bits is None else self.num_tokens * bits

    @property
    def is_discrete(self) -> bool:
        """Whether `encode` gives tokens (True) or latents (False)."""
        return self.codebook_size is not None

    @property
    def predicts_pixels(self) -> bool:
        """Whether `decode` and `forward` give images."""
        return self.learns == "pixels"

    @property
    def prediction_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what `forward` makes of an image; codes are predicted by logits [K, h, w]."""
        return 3, self.image_size, self.image_size

    @abstractmethod
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N] of images (continuous: the mode [B, C, 1, N]), the same in training mode."""

    @abstractmethod
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Images of tokens [B, N] (continuous: of latents [B, C, 1, N])."""

    @abstractmethod
    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None, bypass: torch.Tensor | None = None
    ) -> TokenizerOutput:
        """Encode, quantize and decode with gradient; changes no state, in training mode either.

        Args:
            images: [B, 3, H, W] in [0, 1].
            noise: standard normal [B, C, 1, N] for a variational bottleneck, which no other takes; None draws it in
                training mode and uses the mode in eval mode.
            bypass: bool [B]; where true, the decoder sees the latents as they are instead of their codes. A soft
                start of the bottleneck: encoder and decoder learn to speak before codes carry the message. Not with
                a frozen encoder.
        """

    def _bottleneck(
        self, latents: torch.Tensor, noise: torch.Tensor | None, bypass: torch.Tensor | None
    ) -> QuantizerOutput:
        options = {} if noise is None else {"noise": noise.reshape(*noise.shape[:2], *latents.shape[2:])}
        result = self.quantize(latents, **options)
        if bypass is not None:
            exact = self.quantize.normalize(latents)
            result.quantized = torch.where(bypass[:, None, None, None], exact, result.quantized)
        return result

    def _output(
        self, reconstructions: torch.Tensor, result: QuantizerOutput, latents: torch.Tensor
    ) -> TokenizerOutput:
        return TokenizerOutput(
            reconstructions=reconstructions,
            tokens=result.tokens,
            quantized=result.quantized,
            losses=result.losses,
            posterior=result.posterior,
            latents=None if self.frozen_encoder else latents.detach(),
        )

    @property
    def codebook_started(self) -> bool:
        """Whether the codes can be used; if not, `start_codebook` comes first. May wait for the device."""
        return self.quantize.codebook_started

    def start_codebook(self, output: TokenizerOutput) -> None:
        """Put the codes on the latents of a forward pass; nothing happens to a frozen bottleneck."""
        if output.latents is not None:
            self.quantize.start_codebook(output.latents)

    def update_codebook(self, output: TokenizerOutput) -> CodebookUpdate | None:
        """Move the codes after a training forward and before its backward pass; see `Quantizer.update_codebook`."""
        if output.latents is None:
            return None
        return self.quantize.update_codebook(output.latents, output.tokens)

    def copy_teacher(self, teacher: nn.Module) -> None:
        """Take over the weights that this tokenizer shares with its teacher; most share none."""

    @torch.no_grad()
    def copy_weights(self, other: Tokenizer) -> None:
        """Start from the weights of another tokenizer with the same parts; `new_parts` that it lacks stay as they are.

        Usage statistics of codes that the other one lacks start at even usage.

        Raises:
            ValueError: an entry is missing, left over, or has another shape.
        """
        own, given = self.state_dict(), other.state_dict()
        for key in own:
            if key not in given and not key.startswith((*self.new_parts, USAGE, REVIVALS)):
                raise ValueError(f"it lacks {key!r}, which the configured tokenizer has")
        for key, tensor in given.items():
            if key not in own:
                if key in (USAGE, REVIVALS):
                    continue
                raise ValueError(f"it has {key!r}, which the configured tokenizer lacks")
            if own[key].shape != tensor.shape:
                raise ValueError(f"{key!r} has shape {list(tensor.shape)} instead of {list(own[key].shape)}")
            own[key].copy_(tensor)
        if USAGE in own and USAGE not in given:
            # Zero, the value for fresh codes, would have clustering replace all of these trained ones at once.
            own[USAGE].fill_(1.0 / len(own[USAGE]))
