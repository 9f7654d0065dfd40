"""TA-TiTok: a TiTok whose decoder also reads a caption, so that tokens need not say it (arXiv:2501.07730)."""

from functools import partial
from typing import Literal

import torch

from modeling.layers.half import as_weights
from modeling.quantizers.base import Quantizer
from modeling.tokenizers.base import TokenizerOutput
from modeling.tokenizers.latent_tokenizer import LatentTokenizer, init_part
from modeling.tokenizers.titok_parts import TextTokenDecoder, TokenEncoder


class TATiTok(LatentTokenizer):
    """Text-aware one-dimensional tokenizer, trained in one stage. State-dict names are those of the released weights.

    The decoder receives the per-token features of a caption, float `text` [B, text_length, text_width], from a frozen
    text encoder (released models: CLIP ViT-L/14-336, 77 positions of 768 channels); encoder and bottleneck never see
    text. `decode`, `decode_latents` and `forward` raise ValueError if it is missing or of another shape.

    `init` "released" draws the encoder from a normal with std 0.02 and the decoder as PyTorch does (Kaiming-uniform;
    the joint query-key-value projection Xavier-uniform), as the published models were trained; "fan_in" draws both with
    std 1 / sqrt(inputs), without which narrow models hardly start to learn. For other keywords see `LatentTokenizer`.
    """

    needs_text = True

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
        text_length: int = 77,  # positions T
        text_width: int = 768,  # channels per position
        activation_checkpointing: bool = False,
        init: Literal["released", "fan_in"] = "released",
    ) -> None:
        super().__init__(
            quantizer=quantizer,
            image_size=image_size,
            num_latent_tokens=num_latent_tokens,
            query_width=encoder_hidden_size,
            activation_checkpointing=activation_checkpointing,
            encoder=partial(
                TokenEncoder,
                patch_size=encoder_patch_size,
                hidden_size=encoder_hidden_size,
                depth=encoder_depth,
                num_heads=encoder_num_heads,
            ),
            decoder=partial(
                TextTokenDecoder,
                text_length=text_length,
                text_width=text_width,
                patch_size=decoder_patch_size,
                hidden_size=decoder_hidden_size,
                depth=decoder_depth,
                num_heads=decoder_num_heads,
            ),
        )
        init_part(self.encoder, init)
        if init == "fan_in":  # otherwise the decoder keeps what its layers drew themselves
            init_part(self.decoder, init)

    @property
    def text_length(self) -> int:
        return self.decoder.text_guidance_positional_embedding.shape[0]

    @property
    def text_width(self) -> int:
        return self.decoder.text_guidance_proj.in_features

    def decode_latents(self, quantized: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        self.check_text(text, len(quantized))  # for direct callers
        return self.decoder(as_weights(quantized, self), as_weights(text, self))  # [B, 3, S, S], not clamped

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        self.check_text(text, len(tokens))
        return self.decode_latents(self._lookup(tokens), text).float()  # tokens, or latents [B, C, 1, N]

    def forward(
        self,
        images: torch.Tensor,
        noise: torch.Tensor | None = None,
        bypass: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
    ) -> TokenizerOutput:
        self.check_text(text, len(images))  # before the encoder runs for nothing
        latents = self.encode_latents(images)
        result = self._bottleneck(latents, noise, bypass)
        return self._output(self.decode_latents(result.quantized, text), result, latents)
