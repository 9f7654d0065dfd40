"""Tokenizers whose codes stand for features of a trained network; pixels are learned afterwards, on frozen codes.

Image understanding makes for a good tokenizer (arXiv:2411.04406): VQ-KD and Cluster.
"""

from abc import abstractmethod

import torch
from torch import nn

from modeling.layers.half import as_weights
from modeling.tokenizers.base import Tokenizer, TokenizerOutput
from modeling.tokenizers.convolutional import square


class FeatureTokenizer(Tokenizer):
    """Base: a square grid of codes that decodes to features, or to images once it has a pixel decoder.

    With a pixel decoder everything else is frozen: no gradient, always in eval mode, losses zero. Subclasses set
    `learns`, make their parts, `quantize` among them, and call `_attach` at the end of their constructor. `grid` is the
    tokens per side at `image_size`; `encode` accepts what its encoder accepts.
    """

    new_parts = ("pixel_decoder.",)
    feature_channels: int  # F

    def __init__(self, *, image_size: int, grid: int) -> None:
        super().__init__()
        self.image_size, self.grid = image_size, grid
        self.pixel_decoder: nn.Module | None = None

    def _attach(self, pixel_decoder: nn.Module | None) -> None:  # freezes all the rest
        if self.quantize.codebook_size is None:
            raise ValueError("features need a quantizer with codes; a Gaussian bottleneck has none")
        if pixel_decoder is None:
            return
        side = self.grid * pixel_decoder.upscale
        if side != self.image_size:
            raise ValueError(
                f"the pixel decoder makes images of {side} pixels from {self.grid} x {self.grid} tokens, but"
                f" image_size={self.image_size}"
            )
        self.requires_grad_(False)
        self.pixel_decoder, self.learns, self.frozen_encoder = pixel_decoder, "pixels", True
        self.train(self.training)  # frozen parts to eval mode

    @property
    def num_tokens(self) -> int:
        return self.grid**2

    @property
    def prediction_shape(self) -> tuple[int, int, int]:
        if self.predicts_pixels:
            return super().prediction_shape
        return self.feature_channels, self.grid, self.grid

    def train(self, mode: bool = True) -> "FeatureTokenizer":
        super().train(mode)
        if self.pixel_decoder is not None:
            for name, part in self.named_children():
                part.train(mode and name == "pixel_decoder")  # the rest is frozen
        return self

    @property
    def last_layer(self) -> nn.Parameter | None:
        return None if self.pixel_decoder is None else self.pixel_decoder.last_layer

    @property
    def _token_shapes(self) -> str:
        return "[B, h, w], or [B, h * h]"

    def _fits(self, shape: torch.Size) -> bool:
        return len(shape) in (2, 3) and 0 not in shape[1:]

    @abstractmethod
    def encode_latents(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, latent_channels, h, w], before the bottleneck."""

    @abstractmethod
    def decode_features(self, quantized: torch.Tensor) -> torch.Tensor:
        """Codes [B, C, h, w] -> features [B, F, h, w]."""

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.quantize.encode(self.encode_latents(images))

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], not clamped, or features [B, F, h, w], of tokens [B, h, w] or of a flat square [B, h * h].

        Raises ValueError if flat tokens do not form a square, or as `check_tokens`.
        """
        self.check_tokens(tokens)
        self.quantize.check_range(tokens)
        size = tuple(tokens.shape[1:]) if tokens.ndim == 3 else square(tokens.shape[1])
        return self._decoded(self.quantize.lookup(tokens.flatten(1)).squeeze(2).unflatten(2, size)).float()

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None, bypass: torch.Tensor | None = None
    ) -> TokenizerOutput:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_encoder):
            latents = self.encode_latents(images)
            result = self._bottleneck(latents, noise, bypass)
        if self.frozen_encoder:
            result.losses = {name: torch.zeros_like(loss) for name, loss in result.losses.items()}
        return self._output(self._decoded(result.quantized), result, latents)

    def _decoded(self, quantized: torch.Tensor) -> torch.Tensor:
        if self.pixel_decoder is not None:
            return self.pixel_decoder(as_weights(quantized, self))
        return self.decode_features(as_weights(quantized, self))
