"""The VQGAN of taming-transformers (arXiv:2012.09841) with any bottleneck; by its options also LlamaGen's."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from modeling.quantizers.output import Quantizer, QuantizerOutput
from modeling.tokenizers.base import Tokenizer, TokenizerOutput
from modeling.tokenizers.vqgan_parts import VQGANDecoder, VQGANEncoder, coarsest, connector


class VQGAN(Tokenizer):
    """Two-dimensional tokenizer: tokens are the row-major codes of the map that a convolutional encoder makes.

    Parameter names are those of the released taming weights; files of LlamaGen are renamed when they are loaded.

    Args:
        quantizer: the bottleneck: a codebook (arXiv:1711.00937), `fsq` (arXiv:2309.15505), `vae`, ...
        image_size: image side, which sets `num_tokens`; `encode` accepts other sizes too.
        base_channels: width of the finest level, a multiple of 32.
        multipliers: widths of the levels relative to it; the down-sampling factor f is 2^(levels - 1).
        num_blocks: residual blocks per level of the encoder.
        decoder_blocks: the same of the decoder; None is one more than `num_blocks`.
        attention_levels: indices of the levels with attention, fine to coarse; None is the coarsest.
        middle: residual blocks and attention between encoder levels and output, and in the decoder.
        z_channels: channels of the encoder's output and the decoder's input.
        connector_widths: widths between `z_channels` and the quantizer's channels, joined by 1x1 convolutions and
            mirrored behind it; an empty list is one convolution, None is none at all.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        quantizer: Quantizer,
        image_size: int = 256,
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        decoder_blocks: int | None = None,
        attention_levels: Sequence[int] | None = None,
        middle: bool = True,
        z_channels: int = 256,
        connector_widths: Sequence[int] | None = (),
    ) -> None:
        super().__init__()
        shape = dict(
            base_channels=base_channels,
            multipliers=multipliers,
            attention_levels=coarsest(multipliers) if attention_levels is None else attention_levels,
            middle=middle,
            z_channels=z_channels,
        )
        decoder_blocks = num_blocks + 1 if decoder_blocks is None else decoder_blocks
        self.encoder = VQGANEncoder(**shape, num_blocks=num_blocks)
        self.decoder = VQGANDecoder(**shape, num_blocks=decoder_blocks)
        self.quantize = quantizer
        self.quant_conv = connector(z_channels, connector_widths, quantizer.latent_channels)
        mirrored = None if connector_widths is None else [*reversed(connector_widths)]
        self.post_quant_conv = connector(quantizer.code_dim, mirrored, z_channels)
        self.downscale = 2 ** (len(multipliers) - 1)
        if image_size < 1 or image_size % self.downscale:
            raise ValueError(f"image_size={image_size} must be a multiple of {self.downscale}")
        self.image_size = image_size

    @property
    def num_tokens(self) -> int:
        """Codes per image."""
        return (self.image_size // self.downscale) ** 2

    @property
    def codebook_size(self) -> int | None:
        """Number of codes, None for a Gaussian bottleneck."""
        return self.quantize.codebook_size

    @property
    def bits_per_image(self) -> float | None:
        """num_tokens log2(codebook_size), None for a Gaussian bottleneck."""
        bits = self.quantize.bits_per_token
        return None if bits is None else self.num_tokens * bits

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, where adaptive loss weights compare gradients."""
        return self.decoder.conv_out.weight

    def encode_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Encoder output before the bottleneck: [B, 3, H, W] in [0, 1] -> [B, latent_channels, H / f, W / f].

        Raises:
            ValueError: if the sides are not multiples of f.
        """
        if images.shape[-2] % self.downscale or images.shape[-1] % self.downscale:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels: sides must be multiples of {self.downscale}"
            )
        return self.quant_conv(self.encoder(2.0 * images - 1.0))

    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        """Decoder input [B, code_dim, h, w] -> images [B, 3, f h, f w], about [0, 1] and not clamped."""
        return (self.decoder(self.post_quant_conv(quantized)) + 1.0) / 2.0

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [0, 1] -> tokens int64 [B, (H / f) (W / f)], or the mode [B, C, 1, N]; never moves codes."""
        found = self.quantize.encode(self.encode_latents(images))
        return found if self.is_discrete else found.flatten(2).unsqueeze(2)

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Images clamped to [0, 1].

        Args:
            tokens: [B, h, w], or a flattened square [B, h * h]; with a Gaussian bottleneck latents [B, C, h, w] or
                [B, C, 1, h * h].

        Returns:
            [B, 3, f h, f w].

        Raises:
            ValueError: if flat tokens do not form a square.
        """
        if self.is_discrete:
            size = _grid(tokens.shape[1:])
            codes = self.quantize.lookup(tokens.flatten(1))
        else:
            size, codes = _grid(tokens.shape[2:]), tokens
        return self.decode_latents(codes.reshape(*codes.shape[:2], *size)).clamp(0.0, 1.0)

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None, bypass: torch.Tensor | None = None
    ) -> TokenizerOutput:
        """Encode, quantize and decode with gradient.

        Args:
            images: [B, 3, H, W] in [0, 1].
            noise: standard normal [B, C, 1, N] for a Gaussian bottleneck.
            bypass: bool [B]; where true, the decoder sees the latents as they are instead of their codes.

        Returns:
            reconstructions (not clamped) and what the bottleneck returned.
        """
        result = self._bottleneck(self.encode_latents(images), noise, bypass)
        return TokenizerOutput(
            reconstructions=self.decode_latents(result.quantized),
            tokens=result.tokens,
            quantized=result.quantized,
            losses=result.losses,
            posterior=result.posterior,
        )

    def _bottleneck(
        self, latents: torch.Tensor, noise: torch.Tensor | None, bypass: torch.Tensor | None
    ) -> QuantizerOutput:
        if noise is not None:
            noise = noise.reshape(*noise.shape[:2], *latents.shape[2:])
        result = self.quantize(latents, noise)
        if bypass is not None:
            exact = self.quantize.normalize(latents)
            result.quantized = torch.where(bypass[:, None, None, None], exact, result.quantized)
        return result


def _grid(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of tokens [h, w], [h * h] or [1, h * h]."""
    if len(shape) == 2 and shape[0] > 1:
        return shape[0], shape[1]
    count = shape[-1]
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} tokens do not form a square; pass them as [B, h, w]")
    return side, side
