"""The VQGAN of taming-transformers (arXiv:2012.09841) with any bottleneck; by its options also LlamaGen's."""

from collections.abc import Sequence

import torch

from modeling.layers.half import as_weights
from modeling.quantizers.base import Quantizer
from modeling.tokenizers.convolutional import ConvolutionalTokenizer
from modeling.tokenizers.vqgan_parts import VQGANDecoder, VQGANEncoder, coarsest, connector


class VQGAN(ConvolutionalTokenizer):
    """Two-dimensional tokenizer: tokens are the row-major codes of the map that a convolutional encoder makes.

    Parameter names are those of the released taming weights; files of LlamaGen are renamed when they are loaded.
    `connector_widths` are widths between `z_channels` and the quantizer's channels, joined by 1x1 convolutions and
    mirrored behind it; an empty list is one convolution, None is none at all. Others: `ConvolutionalTokenizer`,
    `VQGANEncoder`.
    """

    def __init__(
        self,
        *,
        quantizer: Quantizer,
        image_size: int = 256,
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        decoder_blocks: int | None = None,  # per level; None: num_blocks + 1
        attention_levels: Sequence[int] | None = None,  # fine to coarse; None: the coarsest
        middle: bool = True,
        z_channels: int = 256,  # of the encoder's output and the decoder's input
        connector_widths: Sequence[int] | None = (),
    ) -> None:
        super().__init__(image_size=image_size, multipliers=multipliers)
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

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.quant_conv(self.encoder(as_weights(2.0 * pixels - 1.0, self)))  # networks work in [-1, 1]

    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        return (self.decoder(self.post_quant_conv(as_weights(quantized, self))) + 1.0) / 2.0
