"""TiTok: an image as a short sequence of tokens without 2-D layout (arXiv:2406.07550, arXiv:2501.07730)."""

from functools import partial
from typing import Literal

import torch
from torch import nn

from modeling.layers.half import as_weights
from modeling.quantizers.base import Quantizer
from modeling.tokenizers.base import TokenizerOutput
from modeling.tokenizers.latent_tokenizer import LatentTokenizer, init_part
from modeling.tokenizers.maskgit_vqgan import MaskGITVQGAN, PixelCodebook, VQGANDecoder, check_base_channels
from modeling.tokenizers.titok_parts import (
    PixelTokenDecoder,
    ProxyTokenDecoder,
    ReviewedTokenEncoder,
    TokenEncoder,
)

LAYOUTS = ("single_stage", "proxy", "two_stage")
PIXEL_DECODER_MULTIPLIERS = (1, 1, 2, 2, 4)  # of the released VQGAN


class TiTok(LatentTokenizer):
    """One-dimensional image tokenizer. State-dict names are those of the released checkpoints.

    Layouts:
        single_stage: the decoder predicts pixels; trained in one stage.
        proxy: first of two stages; the decoder predicts the codes of a frozen MaskGIT-VQGAN, and images
            are replaced by logits [B, proxy_codebook_size, g, g] in `decode`, `decode_latents` and
            `reconstructions`.
        two_stage: second stage; the expected VQGAN code under those logits goes through a pixel decoder.
            Encoder, queries and quantizer are frozen: no gradient, always in eval mode, losses zero.

    `init` "released" is a normal with std 0.02 as in the published recipes; "fan_in" has std 1 / sqrt(inputs), without
    which narrow models hardly start to learn. For other keywords see `LatentTokenizer`.
    """

    new_parts = ("pixel_decoder.", "pixel_quantize.")

    def __init__(
        self,
        *,
        quantizer: Quantizer,
        image_size: int,
        num_latent_tokens: int,
        encoder_hidden_size: int,
        encoder_depth: int,
        encoder_num_heads: int,
        decoder_hidden_size: int,
        decoder_depth: int,
        decoder_num_heads: int,
        encoder_patch_size: int,
        decoder_patch_size: int,
        layout: str = "single_stage",  # one of `LAYOUTS`
        activation_checkpointing: bool = False,
        init: Literal["released", "fan_in"] = "released",
        proxy_codebook_size: int = 1024,  # codes of the VQGAN (proxy and two_stage)
        proxy_code_dim: int = 256,  # channels of such a code (two_stage)
        pixel_decoder_channels: int = 128,  # base width, a multiple of 32 (two_stage)
    ) -> None:
        _check_layout(layout, quantizer)
        single_stage = layout == "single_stage"
        super().__init__(
            quantizer=quantizer,
            image_size=image_size,
            num_latent_tokens=num_latent_tokens,
            query_width=encoder_hidden_size,
            activation_checkpointing=activation_checkpointing,
            encoder=partial(
                TokenEncoder if single_stage else ReviewedTokenEncoder,
                patch_size=encoder_patch_size,
                hidden_size=encoder_hidden_size,
                depth=encoder_depth,
                num_heads=encoder_num_heads,
            ),
            decoder=partial(
                PixelTokenDecoder if single_stage else partial(ProxyTokenDecoder, proxy_codebook_size),
                patch_size=decoder_patch_size,
                hidden_size=decoder_hidden_size,
                depth=decoder_depth,
                num_heads=decoder_num_heads,
            ),
        )
        self.learns = "codes" if layout == "proxy" else "pixels"
        self.frozen_encoder = self.copies_teacher = layout == "two_stage"
        for part in (self.encoder, self.decoder):
            init_part(part, init)
        if self.frozen_encoder:
            self._add_pixel_decoder(proxy_codebook_size, proxy_code_dim, pixel_decoder_channels)
            self._freeze_encoder()

    def _add_pixel_decoder(self, codebook_size: int, code_dim: int, base_channels: int) -> None:
        check_base_channels(base_channels)
        self.pixel_quantize = PixelCodebook(codebook_size=codebook_size, code_dim=code_dim)  # logits -> codes
        self.pixel_decoder = VQGANDecoder(
            base_channels=base_channels,
            multipliers=PIXEL_DECODER_MULTIPLIERS,
            num_blocks=2,
            code_dim=code_dim,
        )
        if self.decoder.patch_size != self.pixel_decoder.upscale:
            raise ValueError(
                f"decoder_patch_size={self.decoder.patch_size} must be {self.pixel_decoder.upscale} "
                "with layout='two_stage' (the pixel decoder's up-sampling)"
            )

    def _freeze_encoder(self) -> None:
        self.latent_tokens.requires_grad_(False)  # queries: part of the encoder
        for module in (self.encoder, self.quantize):
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TiTok":
        super().train(mode)
        if self.frozen_encoder:
            self.encoder.eval()
            self.quantize.eval()
        return self

    @property
    def prediction_shape(self) -> tuple[int, int, int]:
        if self.predicts_pixels:
            return super().prediction_shape
        return self.decoder.codebook_size, self.decoder.grid, self.decoder.grid

    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        """Decoder input [B, C, 1, N] -> images [B, 3, S, S], not clamped (proxy: logits [B, K, g, g])."""
        decoded = self.decoder(as_weights(quantized, self))
        if self.copies_teacher:
            return self.pixel_decoder(self.pixel_quantize.mix(decoded))  # soft codes carry gradient
        return decoded

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decode_latents(self._lookup(tokens)).float()

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None, bypass: torch.Tensor | None = None
    ) -> TokenizerOutput:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_encoder):
            latents = self.encode_latents(images)
            result = self._bottleneck(latents, noise, bypass)
        if self.frozen_encoder:
            result.losses = {name: torch.zeros_like(loss) for name, loss in result.losses.items()}
        return self._output(self.decode_latents(result.quantized), result, latents)

    @torch.no_grad()
    def copy_teacher(self, teacher: nn.Module) -> None:
        """Start layout two_stage from a MaskGITVQGAN: copy its decoder and codebook; ValueError if it does not fit."""
        if not self.copies_teacher:
            raise ValueError("this TiTok has no pixel decoder; use layout='two_stage'")
        if not isinstance(teacher, MaskGITVQGAN):
            raise ValueError(
                f"the pixel decoder is that of a MaskGITVQGAN, but the teacher is a {type(teacher).__name__}"
            )
        for own, other in ((self.pixel_decoder, teacher.decoder), (self.pixel_quantize, teacher.quantize)):
            needed, given = ({k: list(v.shape) for k, v in m.state_dict().items()} for m in (own, other))
            for name in sorted(needed.keys() | given.keys()):
                if needed.get(name) != given.get(name):
                    raise ValueError(
                        f"the VQGAN does not fit the pixel decoder: {name!r} has shape {given.get(name)}, needed is"
                        f" {needed.get(name)}"
                    )
            own.load_state_dict(other.state_dict())


def _check_layout(layout: str, quantizer: Quantizer) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is unknown; choose one of {list(LAYOUTS)}")
    if layout != "single_stage" and quantizer.codebook_size is None:
        raise ValueError(f"layout={layout!r} needs a quantizer with codes; a Gaussian one has none")
