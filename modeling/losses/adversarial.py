"""GAN losses (hinge: arXiv:1705.02894, vanilla and non-saturating: arXiv:1406.2661) and LeCam regularisation
(arXiv:2104.03310)."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import nn
from torch.nn import functional as F

from common.choices import LeCamForm


def hinge_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Half of mean(relu(1 - real)) + mean(relu(1 + fake)), a scalar; logits of any shape, as in all losses here."""
    return 0.5 * (F.relu(1.0 - real_logits.float()).mean() + F.relu(1.0 + fake_logits.float()).mean())


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-mean(fake), a scalar."""
    return -fake_logits.float().mean()


def vanilla_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Half of mean(softplus(-real)) + mean(softplus(fake)), a scalar: cross-entropy."""
    return 0.5 * (F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean())


def non_saturating_generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """mean(softplus(-fake)), a scalar."""
    return F.softplus(-fake_logits.float()).mean()


def image_softplus_generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Mean over images of softplus(-mean logit of the image), for logits [B, ...] (arXiv:2409.04410, 2412.02692).

    Averaging the logits of an image's patches before the softplus weighs a patch by its image's verdict.
    """
    return F.softplus(-_per_image(fake_logits)).mean()


def image_softplus_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """mean(softplus(-r)) + mean(softplus(f)) of the mean logits r, f of every image, for logits [B, ...].

    Binary cross-entropy of whole images, without the half of the other losses (arXiv:2409.04410, as released).
    """
    return F.softplus(-_per_image(real_logits)).mean() + F.softplus(_per_image(fake_logits)).mean()


def _per_image(logits: torch.Tensor) -> torch.Tensor:  # [B, ...] -> [B]
    return logits.float().flatten(1).mean(dim=1)


# Both by the value of `gan_loss` in a recipe.
DISCRIMINATOR_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "hinge": hinge_discriminator_loss,
    "non_saturating": vanilla_discriminator_loss,
    "hinge_softplus": hinge_discriminator_loss,
    "vanilla_softplus": vanilla_discriminator_loss,
    "image_softplus": image_softplus_discriminator_loss,
}
GENERATOR_LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "hinge": generator_loss,
    "non_saturating": non_saturating_generator_loss,
    "hinge_softplus": image_softplus_generator_loss,
    "vanilla_softplus": image_softplus_generator_loss,
    "image_softplus": image_softplus_generator_loss,
}


class LeCam(nn.Module):
    """Keeps the discriminator's logits on real and fake images near each other's moving averages.

    `form` "mean" compares the means of a batch with the averages before they move (arXiv:2501.07730); "logits" moves
    the averages first, and then compares every logit (arXiv:2409.04410 and 2412.02692, as released).
    """

    def __init__(self, *, decay: float = 0.999, form: LeCamForm = "mean") -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay={decay} must be between 0 and 1")
        if form not in get_args(LeCamForm):
            raise ValueError(f"form={form!r} is unknown; choose mean or logits")
        self.decay, self.form = decay, form
        self.register_buffer("ema_real_logits_mean", torch.zeros(1))  # of means: processes average first
        self.register_buffer("ema_fake_logits_mean", torch.zeros(1))

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """mean relu(real - E_fake)^2 + mean relu(E_real - fake)^2 (arXiv:2104.03310, eq. 3) of logits or means."""
        real_term = F.relu(real.float() - self.ema_fake_logits_mean).square().mean()  # E_fake
        fake_term = F.relu(self.ema_real_logits_mean - fake.float()).square().mean()  # E_real
        return real_term + fake_term

    @torch.no_grad()
    def update(self, real_mean: torch.Tensor, fake_mean: torch.Tensor) -> None:
        self.ema_real_logits_mean.lerp_(real_mean.detach().float().view(1), 1.0 - self.decay)
        self.ema_fake_logits_mean.lerp_(fake_mean.detach().float().view(1), 1.0 - self.decay)

    def step(
        self,
        real_logits: torch.Tensor,
        fake_logits: torch.Tensor,
        real_mean: torch.Tensor,
        fake_mean: torch.Tensor,
    ) -> torch.Tensor:
        """The term of one training step in the chosen form, a scalar, and the update of the averages.

        The logits are those of this process; the means are over all processes, with the gradient of the local ones.
        """
        if self.form == "logits":
            self.update(real_mean, fake_mean)  # before the comparison
            return self(real_logits, fake_logits)
        loss = self(real_mean, fake_mean)  # the averages move after
        self.update(real_mean, fake_mean)
        return loss
