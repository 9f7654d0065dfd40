"""Posterior of a variational bottleneck (arXiv:1312.6114)."""

import torch

LOGVAR_RANGE = (-30.0, 20.0)  # exp stays finite in float32


class DiagonalGaussian:
    """A Gaussian with diagonal covariance, in float32.

    `parameters` [B, 2C, H, W]: first half mean, second half log-variance, without gradient outside `LOGVAR_RANGE`.
    """

    def __init__(self, parameters: torch.Tensor) -> None:
        self.mean, logvar = parameters.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)

    @property
    def std(self) -> torch.Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> torch.Tensor:
        return torch.exp(self.logvar)

    def sample(self, noise: torch.Tensor | None = None) -> torch.Tensor:  # None: device's generator
        noise = torch.randn_like(self.mean) if noise is None else noise
        return self.mean + self.std * noise  # reparametrised

    def mode(self) -> torch.Tensor:
        return self.mean

    def kl(self) -> torch.Tensor:
        """KL divergence from the standard normal, nats per token [B, W], summed over channels and height."""
        return 0.5 * (self.mean.square() + self.var - 1.0 - self.logvar).sum(dim=(1, 2))
