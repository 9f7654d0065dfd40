"""Variational bottleneck: diagonal Gaussian posterior (arXiv:1312.6114) over every latent token."""

import torch

from modeling.quantizers.base import Quantizer, QuantizerOutput
from modeling.quantizers.posterior import DiagonalGaussian


class GaussianQuantizer(Quantizer):
    """Continuous bottleneck of the VAE tokenizers, without parameters; the encoder delivers 2 `code_dim` channels.

    `forward` samples in training or when `noise` [B, C, 1, N] is given, otherwise it returns the mode. Its loss is
    `kl_loss`, summed over tokens and channels, averaged over images.
    """

    codebook_size = bits_per_token = None

    def __init__(self, *, code_dim: int) -> None:
        super().__init__()
        self.code_dim, self.latent_channels = code_dim, 2 * code_dim

    def forward(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> QuantizerOutput:
        posterior = DiagonalGaussian(latents)
        sampled = self.training or noise is not None  # noise fixes the draw, in eval mode too
        return QuantizerOutput(
            quantized=posterior.sample(noise) if sampled else posterior.mode(),
            tokens=None,
            losses={"kl_loss": posterior.kl().sum() / latents.shape[0]},  # a mean over images, not tokens
            posterior=posterior,
        )

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        raise ValueError(
            "a Gaussian bottleneck has no codebook; decode latents [B, code_dim, 1, N] instead of tokens"
        )

    def encode(self, latents: torch.Tensor) -> torch.Tensor:  # The mode
        return DiagonalGaussian(latents).mode()
