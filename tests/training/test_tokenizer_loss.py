"""The composed tokenizer losses against the released ones, call by call."""

import numpy as np
import pytest
import torch

from modeling.losses.convnext import ConvNeXtDistance
from modeling.losses.discriminators import NLayerDiscriminator
from modeling.losses.lpips import LPIPS
from modeling.losses.perceptual import PerceptualLoss
from modeling.quantizers.posterior import DiagonalGaussian
from tests.parity import assert_close, fill_module, golden
from training.tasks.tokenizer_loss import TokenizerLoss
from training.tokenizer_settings import PerceptualSettings, TokenizerLossSettings

BLUR = ("blocks.0.1", "blocks.1.1", "blocks.2.1")
BOTH = PerceptualSettings(lpips_weight=1.0, convnext_weight=0.1)
STAGE2 = {
    "perceptual_weight": 0.1,
    "perceptual": PerceptualSettings(convnext_weight=1.0),
    "quantizer_weight": 0.0,
    "discriminator_start": 20_000,
    "discriminator_weight": 0.01,
    "lecam_regularization_weight": 0.001,
}
STAGE2_L1 = STAGE2 | {
    "reconstruction_loss": "l1",
    "quantizer_weight": 0.5,
    "lecam_regularization_weight": 0.1,
    "lecam_ema_decay": 0.9,
}
SINGLE = {
    "perceptual_weight": 1.1,
    "perceptual": BOTH,
    "discriminator_start": 200_000,
    "discriminator_weight": 0.1,
    "lecam_regularization_weight": 0.001,
}
# file, prefix in it, settings, (quantizer, commitment, codebook) losses or None for a VAE
CASES = [
    ("loss_stage2", "", STAGE2, (0.0, 0.0, 0.0)),
    ("loss_stage2", "l1.", STAGE2_L1, (0.4, 0.1, 0.3)),
    ("loss_single_stage_vq", "", SINGLE, (0.7, 0.2, 0.5)),
    ("loss_single_stage_vae", "", SINGLE, None),
]


@pytest.fixture(scope="module")
def networks():
    """ConvNeXt and LPIPS with deterministic weights, made once."""
    convnext, lpips = ConvNeXtDistance(), LPIPS()
    fill_module(convnext.net)
    fill_module(lpips, skip=("scaling_layer",))
    return convnext, lpips


def make_loss(networks, options):
    settings = TokenizerLossSettings(**options)
    weights = settings.perceptual
    convnext, lpips = networks
    perceptual = PerceptualLoss(
        lpips=lpips if weights.lpips_weight else None,
        convnext=convnext if weights.convnext_weight else None,
        lpips_weight=weights.lpips_weight,
        convnext_weight=weights.convnext_weight,
    )
    return TokenizerLoss(settings, perceptual)


def images():
    arrays = golden("loss_inputs")
    real, reconstruction = (
        torch.from_numpy(arrays[k]).permute(0, 3, 1, 2).float() / 255 for k in ("real_u8", "rec_u8")
    )
    return real, reconstruction * 1.2 - 0.1


def bottleneck(arrays, quantizer_losses):
    if quantizer_losses is not None:
        names = ("quantizer_loss", "commitment_loss", "codebook_loss")
        return None, dict(zip(names, map(torch.tensor, quantizer_losses), strict=True))
    parameters = torch.from_numpy(arrays["posterior_parameters"]).requires_grad_()
    return parameters, {"kl_loss": DiagonalGaussian(parameters).kl().sum() / len(parameters)}


def check_scalars(scalars, arrays, call):
    compared = [name for name in scalars if f"{call}.{name}" in arrays]
    for name in compared:
        value = scalars[name].detach() if torch.is_tensor(scalars[name]) else torch.tensor(scalars[name])
        np.testing.assert_allclose(
            value, arrays[f"{call}.{name}"], rtol=1e-4, atol=1e-7, err_msg=f"{call}.{name}"
        )
    return compared


@pytest.mark.parametrize(("file", "prefix", "options", "quantizer_losses"), CASES, ids=lambda v: str(v)[:24])
def test_six_calls_equal_the_released_loss(networks, file, prefix, options, quantizer_losses):
    arrays = golden(file)
    real, reconstruction = images()
    loss = make_loss(networks, options)
    discriminator = fill_module(NLayerDiscriminator(), skip=BLUR)
    if prefix == "l1.":  # so that both sides of the hinge are used
        with torch.no_grad():
            for parameter in discriminator.to_logits[2].parameters():
                parameter.mul_(20)
    start = options["discriminator_start"]
    calls = [("gen_before", start - 1), ("gen_at_start", start), ("disc_1", start), ("disc_2", start)]
    for call, step in [*calls, ("gen_after", start + 5), ("disc_before_start", start - 1)]:
        call = prefix + call
        discriminator.zero_grad()
        if "gen" in call:
            rec = reconstruction.clone().requires_grad_()
            total, scalars = loss.generator(
                real, rec, bottleneck(arrays, quantizer_losses)[1], discriminator, step
            )
            total.backward()
            assert len(check_scalars(scalars, arrays, call)) >= 4
            if f"{call}.grad_rec_every4" in arrays:
                assert_close(
                    rec.grad[:, :, ::4, ::4], arrays[f"{call}.grad_rec_every4"], rtol=1e-4, atol=1e-7
                )
            assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())
        else:
            total, scalars = loss.discriminator(real, reconstruction, discriminator, step)
            total.backward()
            assert len(check_scalars(scalars, arrays, call)) == 4
            for name, parameter in discriminator.named_parameters():
                if f"{call}.gradnorm.{name}" in arrays:
                    norm = parameter.grad.norm()
                    np.testing.assert_allclose(norm, arrays[f"{call}.gradnorm.{name}"], rtol=1e-3, atol=1e-9)
            assert_close(loss.lecam.ema_real_logits_mean, arrays[f"{call}.ema_real"], rtol=1e-4, atol=1e-7)
            assert_close(loss.lecam.ema_fake_logits_mean, arrays[f"{call}.ema_fake"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(total.detach(), arrays[f"{call}.TOTAL"], rtol=1e-4, atol=1e-7)


def test_vae_gradient_and_log_variance(networks):
    arrays = golden("loss_single_stage_vae")
    real, reconstruction = images()
    parameters, losses = bottleneck(arrays, None)
    make_loss(networks, SINGLE).generator(real, reconstruction, losses, None, 0)[0].backward()
    assert_close(parameters.grad, arrays["grad_posterior_parameters"], rtol=1e-4, atol=1e-10)
    loss = make_loss(networks, SINGLE | {"logvar_init": 0.5})
    total, scalars = loss.generator(real, reconstruction, bottleneck(arrays, None)[1], None, 0)
    assert "reconstruction_loss" in check_scalars(scalars, arrays, "logvar_half")
    np.testing.assert_allclose(total.detach(), arrays["logvar_half.TOTAL"], rtol=1e-4)
