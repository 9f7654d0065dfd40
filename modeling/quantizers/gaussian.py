"""Variational bottleneck: diagonal Gaussian posterior (arXiv:1312.6114) over every latent token."""

import torch

from modeling.quantizers.base import Quantizer, QuantizerOutput
from modeling.quantizers.posterior import DiagonalGaussian


class GaussianQuantizer(Quantizer):
    """Continuous bottleneck of the VAE tokenizers; it owns no parameters.

    Args:
        code_dim: channels C of a sample; the encoder delivers 2C.
    """

    codebook_size = bits_per_token = None

    def __init__(self, *, code_dim: int) -> None:
        super().__init__()
        self.code_dim, self.latent_channels = code_dim, 2 * code_dim

    def forward(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> QuantizerOutput:
        """Sample in training or when noise is given, otherwise return the mode.

        Args:
            latents: [B, 2C, 1, N].
            noise: standard normal [B, C, 1, N], or None to draw it from the device's global generator.

        Returns:
            quantized [B, C, 1, N], no tokens, `kl_loss` = KL summed over tokens and channels, averaged over
            images.
        """
        posterior = DiagonalGaussian(latents)
        sampled = self.training or noise is not None
        return QuantizerOutput(
            quantized=posterior.sample(noise) if sampled else posterior.mode(),
            tokens=None,
            losses={"kl_loss": posterior.kl().sum() / latents.shape[0]},
            posterior=posterior,
        )

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """A continuous bottleneck has no codes to look up.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a Gaussian bottleneck has no codebook; decode latents [B, code_dim, 1, N] instead of tokens"
        )

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """The mode [B, C, 1, N] of latents [B, 2C, 1, N]."""
        return DiagonalGaussian(latents).mode()
