"""Whole steps of Open-MAGVIT2's and IBQ's tokenizer losses against their traces (arXiv:2409.04410, 2412.02692)."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.build import ConfigError
from modeling.losses.blur_discriminator import BlurDiscriminator
from modeling.losses.lpips import LPIPS
from modeling.losses.patchgan import PatchGAN
from modeling.losses.perceptual import PerceptualLoss
from tests.parity import assert_close, fill_module, fill_values, golden
from training.tasks.tokenizer_loss import TokenizerLoss
from training.tokenizer_settings import PerceptualSettings, TokenizerLossSettings

KERNELS = ("discriminator.blocks.0.1", "discriminator.blocks.1.1", "discriminator.blocks.2.1")
BUILDERS = {
    "patchgan": PatchGAN,
    "blurgan": BlurDiscriminator,
    "ibq": PatchGAN,
    "adaptive": PatchGAN,
}
PUBLISHED = {
    "reconstruction_loss": "l1",
    "reconstruction_weight": 2.0,
    "perceptual_weight": 1.0,
    "perceptual": PerceptualSettings(lpips_weight=1.0),
    "discriminator_weight": 0.1,
    "gan_loss": "hinge_softplus",
    "lecam_regularization_weight": 0.05,
    "lecam_form": "logits",
}
TOLERANCE = 1e-4


class TwoCalls(nn.Module):
    """Shows both halves of a batch to a discriminator one after the other, as the reference does.

    Ours sees them in one call, so its batch normalisation is another one.
    """

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.judge(half) for half in images.chunk(2)])


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    """LPIPS with deterministic weights under the names that it has inside the reference's loss."""
    model = LPIPS()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "scaling_layer" not in name:
                tensor.copy_(fill_values(f"perceptual_loss.{name}", tensor))
    return model


class Case:
    """The loss, its discriminator, and the images and reconstructions of every step."""

    def __init__(self, name: str, lpips: LPIPS, **options) -> None:
        self.arrays = golden("magvit2_losses")
        self.name = name
        self.loss = TokenizerLoss(
            TokenizerLossSettings(**{**PUBLISHED, **options}),
            PerceptualLoss(lpips=lpips, convnext=None, lpips_weight=1.0, convnext_weight=0.0),
        )
        holder = nn.Module()
        holder.discriminator = BUILDERS[name]()
        self.judge = fill_module(holder, skip=KERNELS).discriminator.train()
        self.images = torch.from_numpy(self["image_u8"]).permute(0, 3, 1, 2).float() / 255
        if f"{name}_rec" in self.arrays:
            self.reconstructions = (torch.from_numpy(self["rec"]) + 1) / 2

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[f"{self.name}_{key}"]

    def steps(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
        """Images, reconstructions with gradient, and the row of the trace; most move both by 7 columns a step."""
        for step, row in enumerate(self["trace"]):
            shift = 0 if self.name == "ibq" else 7 * step
            images, made = (x.roll(shift, 3) for x in (self.images, self.reconstructions))
            yield images, made.clone().requires_grad_(), row


def close(value: torch.Tensor | float, expected: float) -> None:
    value = value.item() if torch.is_tensor(value) else value
    assert value == pytest.approx(expected, rel=TOLERANCE, abs=1e-7)


def bottleneck(constant: float = 0.1 * -4.75 + 0.25 * 0.9) -> dict[str, torch.Tensor]:
    return {"quantizer_loss": torch.tensor(constant), "entropy_loss": torch.tensor(0.1 * -4.75)}


@pytest.mark.parametrize("name", ["patchgan", "blurgan"])
def test_steps_of_open_magvit2_equal_the_trace(name: str, lpips: LPIPS) -> None:
    case = Case(name, lpips)
    with torch.no_grad():
        assert_close(case.judge.eval()(case.images), case["disc_real_eval"], atol=1e-4)
        distances = lpips(case.images, case.reconstructions)
        assert_close(distances.flatten(), case["lpips"], atol=0, rtol=TOLERANCE)
    case.judge.train()
    columns = [str(column) for column in case.arrays["trace_columns"]]
    for step, (images, made, row) in enumerate(case.steps()):
        expected = dict(zip(columns, row, strict=True))
        total, terms = case.loss.generator(images, made, bottleneck(), case.judge, step)
        close(total, expected["total_g"])
        close(terms["reconstruction_loss"], expected["l1"])
        close(terms["perceptual_loss"], expected["lpips"])
        close(terms["weighted_gan_loss"], expected["weighted_g"])
        total.backward()
        total, terms = case.loss.discriminator(images, made, TwoCalls(case.judge), step)
        close(total, expected["total_d"])
        close(terms["logits_real"], expected["mean_logit_real"])
        close(terms["logits_fake"], expected["mean_logit_fake"])
        close(terms["lecam_loss"], 0.05 * expected["lecam"])
        close(total - terms["lecam_loss"], expected["hinge_d"])
        close(case.loss.lecam.ema_real_logits_mean, expected["lecam_ema_real"])
        close(case.loss.lecam.ema_fake_logits_mean, expected["lecam_ema_fake"])
        if step == 0:
            check_gradients(case, made, total)
    state = case.judge.state_dict()
    stored = [key.removeprefix("patchgan_bn_") for key in case.arrays if key.startswith("patchgan_bn_")]
    for key in stored if name == "patchgan" else []:
        assert_close(state[key], case[f"bn_{key}"], atol=1e-4)


def check_gradients(case: Case, made: torch.Tensor, total: torch.Tensor) -> None:
    """Of the reconstructions (there in [-1, 1]: half of ours), and of the discriminator's first weight."""
    expected = case["grad_rec"]
    # Twice the usual tolerance: rounding decides a maximum of LPIPS's pooling in one place.
    assert_close(made.grad[:, :, ::4, ::4] / 2, expected, atol=2e-3 * abs(expected).max())
    total.backward()
    expected = case["grad_disc_first_weight"]
    assert_close(next(case.judge.parameters()).grad, expected, atol=1e-3 * abs(expected).max())


def test_one_call_gives_batch_normalisation_other_statistics(lpips: LPIPS) -> None:
    """What ours does differently: a tenth of the loss here, nothing at all without batch normalisation."""
    losses = {}
    for name in ("patchgan", "blurgan"):
        images, made, _ = next(Case(name, lpips).steps())
        for kind in (nn.Identity, TwoCalls):
            case = Case(name, lpips)
            judge = TwoCalls(case.judge) if kind is TwoCalls else case.judge
            losses[name, kind] = case.loss.discriminator(images, made, judge, 0)[0].item()
    assert losses["blurgan", nn.Identity] == pytest.approx(losses["blurgan", TwoCalls], rel=1e-5)
    assert 1e-5 < abs(losses["patchgan", nn.Identity] - losses["patchgan", TwoCalls]) < 0.2


def test_steps_of_ibq_equal_the_trace(lpips: LPIPS) -> None:
    case = Case("ibq", lpips)
    for step, (images, made, row) in enumerate(case.steps()):
        total, terms = case.loss.discriminator(images, made, TwoCalls(case.judge), step)
        close(total, row[0])
        close(terms["lecam_loss"], 0.05 * row[1])
        codes = bottleneck(0.8 + 0.05 * -4.75)
        total, terms = case.loss.generator(images, made, codes, case.judge, step)
        close(total, row[2])
        close(terms["reconstruction_loss"] + terms["perceptual_loss"], row[3])
        close(terms["weighted_gan_loss"], row[4])
        close(terms["quantizer_loss"], row[5])


def test_adaptive_weight_equals_the_reference(lpips: LPIPS) -> None:
    case = Case("adaptive", lpips, adaptive_weight=True, discriminator_weight=0.8)
    weight = fill_values("decoder.conv_out.weight", torch.empty(3, 16, 3, 3)).requires_grad_()
    made = (F.conv2d(torch.from_numpy(case["feat"]), weight, padding=1) + 1) / 2
    total, terms = case.loss.generator(case.images, made, bottleneck(), case.judge, step=0, last_layer=weight)
    close(terms["adaptive_weight"], float(case["d_weight"]))
    close(terms["reconstruction_loss"] + terms["perceptual_loss"], float(case["nll"]))
    close(terms["weighted_gan_loss"], float(case["weighted_g"]))
    close(total, float(case["total_g"]))


def test_boosted_entropy_equals_the_reference() -> None:
    settings = TokenizerLossSettings(entropy_boost=3.0, entropy_boost_steps=2000, quantizer_weight=0.5)
    loss, image = TokenizerLoss(settings), torch.rand(1, 3, 16, 16)
    for step, expected in golden("magvit2_losses")["enlarge_step_value"]:
        codes = bottleneck()
        term = codes["entropy_loss"] + loss.entropy_addition(codes, int(step))
        assert term.item() == pytest.approx(expected, rel=1e-6)
        total, _ = loss.generator(image, image, codes, None, int(step))
        assert total.item() == pytest.approx(0.5 * (expected + 0.25 * 0.9), rel=1e-5)
    assert loss.entropy_addition({"quantizer_loss": torch.ones(())}, 0) == 0.0
    for options in ({"entropy_boost": -1.0}, {"entropy_boost_steps": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            TokenizerLossSettings(**options)
