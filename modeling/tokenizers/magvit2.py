"""The image tokenizer of Open-MAGVIT2 (arXiv:2409.04410), a MAGVIT-v2 (arXiv:2310.05737) for images."""

from collections.abc import Sequence

import torch

from modeling.layers.half import as_weights
from modeling.quantizers.base import Quantizer
from modeling.tokenizers.convolutional import ConvolutionalTokenizer
from modeling.tokenizers.magvit2_parts import MAGVIT2Decoder, MAGVIT2Encoder


class MAGVIT2(ConvolutionalTokenizer):
    """Purely convolutional tokenizer whose decoder is normalised by the codes; tokens are the row-major codes.

    Parameter names are those of the released weights, whose quantizer is `lfq`; keywords as in
    `ConvolutionalTokenizer`.
    """

    def __init__(
        self,
        *,
        quantizer: Quantizer,
        image_size: int = 256,
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 4,  # per level, in both halves
    ) -> None:
        super().__init__(image_size=image_size, multipliers=multipliers)
        shape = dict(base_channels=base_channels, multipliers=multipliers, num_blocks=num_blocks)
        self.encoder = MAGVIT2Encoder(**shape, z_channels=quantizer.latent_channels)
        self.decoder = MAGVIT2Decoder(**shape, z_channels=quantizer.code_dim)
        self.quantize = quantizer

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder(as_weights(2.0 * pixels - 1.0, self))  # networks work in [-1, 1]

    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        return (self.decoder(as_weights(quantized, self)) + 1.0) / 2.0
