"""What convolutional tokenizers share: a map of codes between an encoder and a decoder, for images of any size."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from modeling.tokenizers.base import Tokenizer, TokenizerOutput


class ConvolutionalTokenizer(Tokenizer):
    """Two-dimensional tokenizer; subclasses make `encoder`, `decoder` (its last layer `conv_out`) and `quantize`.

    `image_size` sets `num_tokens`; `encode` accepts other sizes too. Keywords of subclasses: `base_channels` is the
    width of the finest level, a multiple of 32; `multipliers` gives the widths of the levels relative to it, fine to
    coarse, so that the down-sampling factor f is 2^(levels - 1); `num_blocks` is residual blocks per level.
    """

    decoder: nn.Module

    def __init__(self, *, image_size: int, multipliers: Sequence[int]) -> None:
        super().__init__()
        if not multipliers:
            raise ValueError("multipliers=[] must be at least one level")
        self.downscale = 2 ** (len(multipliers) - 1)
        if image_size < 1 or image_size % self.downscale:
            raise ValueError(f"image_size={image_size} must be a multiple of {self.downscale}")
        self.image_size = image_size

    @abstractmethod
    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Input of the bottleneck [B, latent_channels, H / f, W / f] of images [B, 3, H, W] in [0, 1]."""

    @abstractmethod
    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        """Decoder input [B, code_dim, h, w] -> images [B, 3, f h, f w], about [0, 1] and not clamped."""

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.downscale) ** 2

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.downscale, width // self.downscale

    def check_images(self, images: torch.Tensor) -> None:
        self._check_pixels(images)
        height, width = images.shape[2:]
        if not height or not width or height % self.downscale or width % self.downscale:
            raise ValueError(
                f"images of {height} x {width} pixels: sides must be multiples of {self.downscale}"
            )

    @property
    def _token_shapes(self) -> str:
        channels = "" if self.is_discrete else f", {self._channels}"
        return f"[B{channels}, h, w], or [B{channels}{', 1' if channels else ''}, h * h]"

    def _fits(self, shape: torch.Size) -> bool:
        if self.is_discrete:
            return len(shape) in (2, 3) and 0 not in shape[1:]
        return len(shape) == 4 and shape[1] == self._channels and 0 not in shape[2:]

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def encode_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Encoder output before the bottleneck: [B, 3, H, W] in [0, 1] -> [B, latent_channels, H / f, W / f].

        Raises ValueError if the sides are not multiples of f, or as `check_images`.
        """
        self.check_images(images)
        return self._encode_pixels(images)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        found = self.quantize.encode(self.encode_latents(images))
        return found if self.is_discrete else found.flatten(2).unsqueeze(2)

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, f h, f w] clamped to [0, 1].

        Of tokens [B, h, w] or a flattened square [B, h * h], with a Gaussian bottleneck of latents [B, C, h, w] or
        [B, C, 1, h * h]. Raises ValueError if flat tokens do not form a square, or as `check_tokens`.
        """
        self.check_tokens(tokens)
        if self.is_discrete:
            size = tuple(tokens.shape[1:]) if tokens.ndim == 3 else square(tokens.shape[1])
            self.quantize.check_range(tokens)
            codes = self.quantize.lookup(tokens.flatten(1))  # [B, C, 1, h w]
        else:  # a single row is a flattened square, as `encode` gives it
            size = tuple(tokens.shape[2:]) if tokens.shape[2] > 1 else square(tokens.shape[3])
            codes = tokens
        images = self.decode_latents(codes.reshape(*codes.shape[:2], *size))  # of codes [B, C, h, w]
        return images.clamp(0.0, 1.0).float()

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None, bypass: torch.Tensor | None = None
    ) -> TokenizerOutput:
        latents = self.encode_latents(images)
        result = self._bottleneck(latents, noise, bypass)
        return self._output(self.decode_latents(result.quantized), result, latents)


def square(count: int) -> tuple[int, int]:
    """Rows and columns of `count` flat tokens; ValueError if they do not form a square."""
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} tokens do not form a square; pass them as [B, h, w]")
    return side, side
