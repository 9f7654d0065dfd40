"""The weighted loss of an image tokenizer and of its discriminator (arXiv:2501.07730)."""

import torch
from torch import nn

from common.distributed import all_reduce_mean
from modeling.losses.adaptive import FLOAT16_SCALE, adaptive_weight
from modeling.losses.adversarial import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, LeCam
from modeling.losses.perceptual import PerceptualLoss
from modeling.losses.reconstruction import RECONSTRUCTION_LOSSES
from training.tokenizer_settings import TokenizerLossSettings

REPORTED = ("commitment_loss", "codebook_loss", "entropy_loss", "per_sample_entropy", "batch_entropy")


class TokenizerLoss(nn.Module):
    """Pixel, perceptual, bottleneck and adversarial terms, in float32; only the LeCam averages are state."""

    def __init__(self, settings: TokenizerLossSettings, perceptual: PerceptualLoss | None = None):
        super().__init__()
        self.settings = settings
        # Once and in float32, so that no step makes a tensor of it and the quotient has the same bits.
        self.variance = torch.tensor(settings.logvar_init).exp().item()
        self.perceptual = [perceptual]  # in a list: frozen weights stay out of the state dict
        self.lecam = (
            LeCam(decay=settings.lecam_ema_decay, form=settings.lecam_form)
            if settings.lecam_regularization_weight > 0
            else None
        )

    def factor(self, step: int) -> float:
        """Adversarial factor, 0 before `discriminator_start`."""
        return self.settings.discriminator_factor if step >= self.settings.discriminator_start else 0.0

    def entropy_addition(self, bottleneck: dict[str, torch.Tensor], step: int) -> torch.Tensor | float:
        """Scalar boost * max(0, 1 - step / steps) * entropy_loss, an option of Open-MAGVIT2 (arXiv:2409.04410).

        `entropy_loss` is the weighted term that `quantizer_loss` already contains once.
        """
        settings = self.settings
        share = max(0.0, 1.0 - step / settings.entropy_boost_steps)
        if not settings.entropy_boost * share or "entropy_loss" not in bottleneck:
            return 0.0
        return settings.entropy_boost * share * bottleneck["entropy_loss"]

    def generator(
        self,
        images: torch.Tensor,
        reconstructions: torch.Tensor,
        bottleneck: dict[str, torch.Tensor],
        discriminator: nn.Module | None,
        step: int,
        last_layer: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
        """Loss of the tokenizer, and the weighted terms to log.

        Args:
            images: [B, 3, H, W] in [0, 1]; reconstructions are not clamped.
            bottleneck: `quantizer_loss` and its parts (VQ), or `kl_loss` (VAE), unweighted.
            discriminator: the unwrapped module; its parameters get no gradient.
            last_layer: weight of the decoder's last layer, needed with `adaptive_weight`.
        """
        settings = self.settings
        scale = FLOAT16_SCALE if reconstructions.dtype == torch.float16 else 1.0
        images, reconstructions = images.float(), reconstructions.float()
        compare = RECONSTRUCTION_LOSSES[settings.reconstruction_loss]
        pixel = settings.reconstruction_weight * compare(images, reconstructions)
        total, scalars = pixel, {"reconstruction_loss": pixel}
        if "kl_loss" in bottleneck:
            scalars["kl_loss"] = settings.kl_weight * bottleneck["kl_loss"]
            scalars["reconstruction_loss"] = pixel / self.variance  # / exp(logvar_init)
            total = scalars["reconstruction_loss"] + scalars["kl_loss"]
        if "quantizer_loss" in bottleneck:
            codes = bottleneck["quantizer_loss"] + self.entropy_addition(bottleneck, step)
            scalars["quantizer_loss"] = settings.quantizer_weight * codes
            scalars |= {name: bottleneck[name] for name in REPORTED if name in bottleneck}
            total = total + scalars["quantizer_loss"]
        if settings.perceptual_weight and self.perceptual[0] is not None:
            perceptual = self.perceptual[0](images, reconstructions).mean()
            scalars["perceptual_loss"] = settings.perceptual_weight * perceptual
            total = total + scalars["perceptual_loss"]
        factor = self.factor(step)
        if discriminator is not None and factor > 0 and settings.discriminator_weight > 0:
            discriminator.requires_grad_(False)  # gradients reach the images alone
            gan = GENERATOR_LOSSES[settings.gan_loss](discriminator(reconstructions))
            discriminator.requires_grad_(True)
            weight = settings.discriminator_weight * factor
            if settings.adaptive_weight:
                visible = scalars["reconstruction_loss"] + scalars.get("perceptual_loss", 0.0)
                options = {"gain": weight, "average": all_reduce_mean, "scale": scale}
                weight = adaptive_weight(visible, gan, last_layer, **options)
                scalars["adaptive_weight"] = weight
            scalars |= {"gan_loss": gan, "weighted_gan_loss": weight * gan}
            total = total + scalars["weighted_gan_loss"]
        return total, {"total_loss": total, **scalars}

    def discriminator(
        self, images: torch.Tensor, reconstructions: torch.Tensor, discriminator: nn.Module, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
        """Loss of the discriminator on images and detached reconstructions; updates the LeCam averages."""
        # One call: batch normalisation gives both common statistics, which move once. As released, LlamaGen,
        # Open-MAGVIT2 and IBQ make two calls, with statistics of their own.
        both = torch.cat([images.float(), reconstructions.detach().float()])
        real, fake = discriminator(both).chunk(2)  # DDP, too, takes one forward per backward
        loss = self.factor(step) * DISCRIMINATOR_LOSSES[self.settings.gan_loss](real, fake)
        real_mean, fake_mean = global_mean(real), global_mean(fake)
        scalars = {"logits_real": real_mean.detach(), "logits_fake": fake_mean.detach()}
        if self.lecam is not None:
            lecam = self.lecam.step(real, fake, real_mean, fake_mean)
            scalars["lecam_loss"] = self.settings.lecam_regularization_weight * lecam
            loss = loss + scalars["lecam_loss"]
        return loss, {"discriminator_loss": loss, **scalars}


def global_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over all processes with the gradient of the local mean; DDP averages gradients afterwards: exact."""
    local = values.mean()
    return local + (all_reduce_mean(local) - local).detach()
