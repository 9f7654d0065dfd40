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


def described(tensor: torch.Tensor) -> str:
    """Type and shape of a tensor for messages: "uint8 [4, 3, 256, 256]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


@dataclass
class TokenizerOutput:
    """Result of a tokenizer's training forward."""

    reconstructions: torch.Tensor  # [B, 3, H, W] not clamped, or [B, *prediction_shape]
    tokens: torch.Tensor | None  # int64 [B, N], None for a continuous tokenizer
    quantized: torch.Tensor  # [B, C, 1, N] (2-D tokenizers: [B, C, h, w]), input of the decoder
    losses: dict[str, torch.Tensor] = field(default_factory=dict)  # unweighted scalars
    posterior: DiagonalGaussian | None = None  # of a variational bottleneck
    latents: torch.Tensor | None = None  # [B, C, h, w] before the bottleneck, detached; None if frozen


class Tokenizer(Trainable, ABC):
    """Images float32 [B, 3, H, W] in [0, 1] to tokens int64 [B, N] and back.

    A continuous tokenizer (`is_discrete` False) has latents [B, C, 1, N] in the place of tokens. The attribute `learns`
    is a key of `training.tasks.TOKENIZER_TASKS`, what training compares the output of `forward` with: the "pixels" of
    the images, the "codes" of another tokenizer, the "features" of a frozen network; "codebook" fits the codes to such
    features and trains nothing else. Constructors raise ValueError for sizes or parts that do not fit together.
    """

    parts: tuple[str, ...] = ("quantizer",)  # keywords with YAML sections of their own, in building order
    quantize: Quantizer  # the bottleneck
    image_size: int  # side of the square images
    downscale: int | None = None  # pixels per token along a side; None: one image size only
    learns: Literal["pixels", "codes", "features", "codebook"] = "pixels"
    frozen_encoder: bool = False  # encoder and codes are finished, training leaves them
    copies_teacher: bool = False  # training starts from parts of a teacher (`copy_teacher`)
    new_parts: tuple[str, ...] = ()  # prefixes of entries that the source of `copy_weights` may lack
    last_layer: nn.Parameter | None = None  # where adaptive loss weights compare gradients
    needs_text: bool = False  # `decode` and `forward` need `text` [B, text_length, text_width]
    text_length: int = 0
    text_width: int = 0
    section: dict[str, Any] | None = None  # the YAML section that it was built from

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Tokens per image, N."""

    @property
    def codebook_size(self) -> int | None:  # number of different tokens, None if continuous
        return self.quantize.codebook_size

    @property
    def bits_per_image(self) -> float | None:  # N log2(codebook_size), None if continuous
        bits = self.quantize.bits_per_token
        return None if bits is None else self.num_tokens * bits

    @property
    def is_discrete(self) -> bool:  # whether `encode` gives tokens (True) or latents (False)
        return self.codebook_size is not None

    @property
    def predicts_pixels(self) -> bool:  # whether `decode` and `forward` give images
        return self.learns == "pixels"

    @property
    def prediction_shape(self) -> tuple[int, int, int]:
        """Channels, height and width that `forward` makes of an image; codes are predicted by logits [K, h, w]."""
        return 3, self.image_size, self.image_size

    def token_grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of the tokens of such an image; None if tokens have no layout, or images one size."""
        return None

    def check_images(self, images: torch.Tensor) -> None:
        """Raise ValueError for images that are no float [B, 3, H, W] of a size that `encode` takes; reads no value."""
        self._check_pixels(images)
        if tuple(images.shape[2:]) != (self.image_size, self.image_size):
            size = self.image_size
            raise ValueError(
                f"images must be [B, 3, {size}, {size}] for this tokenizer, got {tuple(images.shape)}"
            )

    def _check_pixels(self, images: torch.Tensor) -> None:
        """The part of `check_images` that holds for images of any size."""
        expected = "expected float [B, 3, H, W] in [0, 1]"
        if not isinstance(images, torch.Tensor):
            raise ValueError(f"images are a {type(images).__name__}, {expected}")
        if not images.is_floating_point():
            hint = "; divide 8-bit values by 255" if images.dtype == torch.uint8 else ""
            raise ValueError(f"images are {described(images)}, {expected}{hint}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W] for this tokenizer, got {tuple(images.shape)}")

    def check_tokens(self, tokens: torch.Tensor) -> None:
        """Raise ValueError for tokens, or latents, of another type or shape than `decode` takes; reads no value."""
        what, kind = ("tokens", "integers") if self.is_discrete else ("latents", "floats")
        expected = f"expected {kind} {self._token_shapes}"
        if not isinstance(tokens, torch.Tensor):
            raise ValueError(f"{what} are a {type(tokens).__name__}, {expected}")
        number = not tokens.is_complex() and tokens.dtype != torch.bool
        if not number or tokens.is_floating_point() == self.is_discrete or not self._fits(tokens.shape):
            raise ValueError(f"{what} are {described(tokens)}, {expected}")

    @property
    def _token_shapes(self) -> str:
        """What `_fits` accepts, for messages."""
        return (
            f"[B, {self.num_tokens}]" if self.is_discrete else f"[B, {self._channels}, 1, {self.num_tokens}]"
        )

    def _fits(self, shape: torch.Size) -> bool:
        """Whether tokens or latents of this shape can be decoded."""
        if self.is_discrete:
            return shape[1:] in ((self.num_tokens,), (1, self.num_tokens))
        return shape[1:] == (self._channels, 1, self.num_tokens)

    @property
    def _channels(self) -> int:
        return self.quantize.code_dim  # of a latent

    def check_text(self, text: torch.Tensor | None, batch: int) -> None:
        """Raise ValueError unless `text` is float [batch, text_length, text_width], or None where none is read."""
        if not self.needs_text:
            if text is not None:
                raise ValueError(f"text is given, but a {type(self).__name__} decodes without captions")
            return
        wanted = [batch, self.text_length, self.text_width]
        if text is None:
            raise ValueError(f"this tokenizer decodes with captions: text features {wanted} are missing")
        expected = f"text must be float {wanted} (batch, text_length, text_width), got"
        if not isinstance(text, torch.Tensor):
            raise ValueError(f"{expected} a {type(text).__name__}; a text encoder makes it of captions")
        if list(text.shape) != wanted or not text.is_floating_point():
            raise ValueError(f"{expected} {described(text)}")

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
            noise: standard normal [B, C, 1, N], for a variational bottleneck only; None draws it in training mode and
                uses the mode in eval mode.
            bypass: bool [B]; where true, the decoder sees the latents instead of their codes. A soft start: encoder and
                decoder learn to speak before codes carry the message. Not with a frozen encoder.
        """

    def _bottleneck(
        self, latents: torch.Tensor, noise: torch.Tensor | None, bypass: torch.Tensor | None
    ) -> QuantizerOutput:
        options = {} if noise is None else {"noise": noise.reshape(*noise.shape[:2], *latents.shape[2:])}
        result = self.quantize(latents, **options)
        if bypass is not None:
            exact = self.quantize.normalize(latents)  # on the scale of the codes
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
    def codebook_started(self) -> bool:  # as of the quantizer; may wait for the device
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

        Raises ValueError for an entry that is missing, left over, or of another shape.
        """
        own, given = self.state_dict(), other.state_dict()
        for key in own:
            if key not in given and not key.startswith((*self.new_parts, USAGE, REVIVALS)):
                raise ValueError(f"it lacks {key!r}, which the configured tokenizer has")
        for key, tensor in given.items():
            if key not in own:
                if key in (USAGE, REVIVALS):  # statistics that our options do without
                    continue
                raise ValueError(f"it has {key!r}, which the configured tokenizer lacks")
            if own[key].shape != tensor.shape:
                raise ValueError(f"{key!r} has shape {list(tensor.shape)} instead of {list(own[key].shape)}")
            own[key].copy_(tensor)
        if USAGE in own and USAGE not in given:
            # Zero, the value for fresh codes, would have clustering replace all of these trained ones at once.
            own[USAGE].fill_(1.0 / len(own[USAGE]))
