"""What TiTok and TA-TiTok share: an encoder with learned queries, a bottleneck, a decoder of the latents."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import nn

from modeling.layers.half import as_weights
from modeling.layers.initialization import init_vit_weights, scaled_embedding
from modeling.quantizers.base import Quantizer
from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.titok_parts import LatentDecoder, TokenEncoder


class LatentTokenizer(Tokenizer):
    """One-dimensional tokenizer of square images; subclasses say how latents become images.

    Keywords of all subclasses: `num_latent_tokens` is the tokens per image N; `encoder_*` and `decoder_*` size the two
    transformers, patch sides must divide `image_size`; `activation_checkpointing` recomputes blocks in the backward
    pass. `encoder` and `decoder` make the two halves from the keywords they share and the channels of the bottleneck.
    """

    def __init__(
        self,
        *,
        quantizer: Quantizer,
        image_size: int,
        num_latent_tokens: int,
        query_width: int,  # encoder width D
        activation_checkpointing: bool,
        encoder: Callable[..., TokenEncoder],
        decoder: Callable[..., LatentDecoder],
    ) -> None:
        super().__init__()
        if num_latent_tokens < 1:
            raise ValueError(f"num_latent_tokens={num_latent_tokens} must be at least 1")
        self.image_size = image_size
        shared = dict(
            image_size=image_size,
            num_latent_tokens=num_latent_tokens,
            activation_checkpointing=activation_checkpointing,
        )
        self.latent_tokens = scaled_embedding(num_latent_tokens, query_width)  # [N, D]
        self.encoder = encoder(**shared, latent_channels=quantizer.latent_channels)
        self.decoder = decoder(**shared, code_dim=quantizer.code_dim)
        self.quantize = quantizer

    @property
    def num_tokens(self) -> int:
        return self.latent_tokens.shape[0]

    def encode_latents(self, images: torch.Tensor) -> torch.Tensor:
        """Encoder output before the bottleneck: [B, 3, S, S] in [0, 1] -> [B, latent_channels, 1, N].

        Raises ValueError for images of another size.
        """
        self.check_images(images)
        return self.encoder(as_weights(images, self), self.latent_tokens)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        latents = self.encode_latents(images)
        return self.quantize.encode(latents)

    def _lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decoder input [B, C, 1, N] of tokens [B, N] or [B, 1, N]; latents pass as they are."""
        self.check_tokens(tokens)
        if not self.is_discrete:
            return tokens  # latents already
        self.quantize.check_range(tokens)
        return self.quantize.lookup(tokens.view(tokens.shape[0], -1))  # [B, N] or [B, 1, N]


def init_part(part: nn.Module, init: Literal["released", "fan_in"]) -> None:
    """Initialise encoder or decoder: "released" is a normal with std 0.02, "fan_in" one with 1 / sqrt(inputs)."""
    part.apply(partial(init_vit_weights, std=0.02 if init == "released" else None))
