"""GAN losses (hinge: arXiv:1705.02894, vanilla and non-saturating: arXiv:1406.2661) and LeCam regularisation
(arXiv:2104.03310)."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


def hinge_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Half of mean(relu(1 - real)) + mean(relu(1 + fake)), a scalar; logits of any shape."""
    return 0.5 * (F.relu(1.0 - real_logits.float()).mean() + F.relu(1.0 + fake_logits.float()).mean())


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-mean(fake), a scalar; logits of any shape."""
    return -fake_logits.float().mean()


def vanilla_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Half of mean(softplus(-real)) + mean(softplus(fake)), cross-entropy; a scalar, logits of any shape."""
    return 0.5 * (F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean())


def non_saturating_generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """mean(softplus(-fake)), a scalar; logits of any shape."""
    return F.softplus(-fake_logits.float()).mean()


DISCRIMINATOR_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "hinge": hinge_discriminator_loss,
    "vanilla": vanilla_discriminator_loss,
}
GENERATOR_LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "hinge": generator_loss,
    "non_saturating": non_saturating_generator_loss,
}


class LeCam(nn.Module):
    """Keeps the discriminator's mean logits on real and fake images near each other's moving averages.

    Buffers `ema_real_logits_mean` and `ema_fake_logits_mean`, both [1], start at 0. Arguments are means and
    not logits, so that the caller can average over processes first.

    Args:
        decay: of the moving averages.
    """

    def __init__(self, *, decay: float = 0.999) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay} must be between 0 and 1")
        self.decay = decay
        self.register_buffer("ema_real_logits_mean", torch.zeros(1))
        self.register_buffer("ema_fake_logits_mean", torch.zeros(1))

    def forward(self, real_mean: torch.Tensor, fake_mean: torch.Tensor) -> torch.Tensor:
        """relu(real_mean - E_fake)^2 + relu(E_real - fake_mean)^2 (eq. 3), a scalar, for scalar means."""
        real_term = F.relu(real_mean.float() - self.ema_fake_logits_mean).square()
        fake_term = F.relu(self.ema_real_logits_mean - fake_mean.float()).square()
        return (real_term + fake_term).squeeze()

    @torch.no_grad()
    def update(self, real_mean: torch.Tensor, fake_mean: torch.Tensor) -> None:
        """Move the averages towards the scalar means of this step; call it after the loss."""
        self.ema_real_logits_mean.lerp_(real_mean.detach().float().view(1), 1.0 - self.decay)
        self.ema_fake_logits_mean.lerp_(fake_mean.detach().float().view(1), 1.0 - self.decay)
