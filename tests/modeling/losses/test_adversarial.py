"""GAN losses against hand-computed values and gradients."""

import math
from typing import get_args

import pytest
import torch

from modeling.losses.adversarial import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    LeCam,
    generator_loss,
    hinge_discriminator_loss,
)
from tests.parity import assert_close, golden
from training.tokenizer_settings import GANLoss, TokenizerLossSettings


def test_hinge_value_and_gradient() -> None:
    real = torch.tensor([2.0, 0.5, -1.0, 0.0], requires_grad=True)
    fake = torch.tensor([-2.0, -0.5, 1.0, 0.0], requires_grad=True)
    loss = hinge_discriminator_loss(real, fake)
    loss.backward()
    # relu(1 - real) = 0, 0.5, 2, 1 and relu(1 + fake) = 0, 0.5, 2, 1: both means are 3.5 / 4
    assert loss.item() == pytest.approx(0.875)
    assert real.grad.tolist() == [0.0, -0.125, -0.125, -0.125]
    assert fake.grad.tolist() == [0.0, 0.125, 0.125, 0.125]


def test_generator_loss_pushes_logits_up() -> None:
    fake = torch.tensor([[1.0, -3.0]], requires_grad=True)
    loss = generator_loss(fake)
    loss.backward()
    assert loss.item() == 1.0 and fake.grad.tolist() == [[-0.5, -0.5]]


def test_losses_are_float32_under_autocast_types() -> None:
    logits = torch.ones(4, dtype=torch.bfloat16)
    assert generator_loss(logits).dtype == hinge_discriminator_loss(logits, logits).dtype == torch.float32


def test_lecam_penalty_gradient_and_averages() -> None:
    lecam = LeCam(decay=0.9)
    assert list(lecam.state_dict()) == ["ema_real_logits_mean", "ema_fake_logits_mean"]
    real, fake = torch.tensor(2.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    assert lecam(real, fake).item() == 4.0 + 1.0
    lecam.update(real, fake)
    assert lecam.ema_real_logits_mean.tolist() == pytest.approx([0.2])
    assert lecam.ema_fake_logits_mean.tolist() == pytest.approx([-0.1])
    loss = lecam(real, fake)
    loss.backward()
    assert loss.shape == () and loss.item() == pytest.approx(2.1**2 + 1.2**2)
    assert real.grad.item() == pytest.approx(4.2) and fake.grad.item() == pytest.approx(-2.4)
    assert lecam(torch.tensor(-0.5), torch.tensor(0.5)).item() == 0.0


def test_lecam_rejects_an_impossible_decay() -> None:
    with pytest.raises(ValueError, match="decay=1.5"):
        LeCam(decay=1.5)


def test_losses_equal_the_reference() -> None:
    data = golden("ut_losses_metrics")
    real, fake = torch.from_numpy(data["logits_real"]), torch.from_numpy(data["logits_fake"])
    for name, stored in (("hinge", "hinge_d"), ("non_saturating", "vanilla_d")):
        assert_close(DISCRIMINATOR_LOSSES[name](real, fake), data[stored], atol=0, rtol=1e-5)
    assert_close(GENERATOR_LOSSES["hinge"](fake), data["hinge_g"], atol=0, rtol=1e-5)
    assert_close(GENERATOR_LOSSES["non_saturating"](fake), data["nonsaturating_g"], atol=0, rtol=1e-5)


def test_vanilla_and_non_saturating_gradients_point_the_right_way() -> None:
    real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    loss = DISCRIMINATOR_LOSSES["non_saturating"](real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert real.grad.tolist() == [-0.125, -0.125] and fake.grad.tolist() == [0.125, 0.125]
    logits = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    loss = GENERATOR_LOSSES["non_saturating"](logits)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.tolist() == [-0.25, -0.25]


def test_recipes_have_one_table_of_names() -> None:
    assert set(DISCRIMINATOR_LOSSES) == set(GENERATOR_LOSSES) == set(get_args(GANLoss))
    for name in DISCRIMINATOR_LOSSES:
        assert TokenizerLossSettings(gan_loss=name).gan_loss == name


def test_logits_are_averaged_per_image_before_the_softplus() -> None:
    fake = torch.tensor([[[[4.0, -4.0]]], [[[1.0, 3.0]]]], requires_grad=True)
    real = torch.tensor([[[[1.0, -3.0]]], [[[0.0, 2.0]]]])

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    for name in ("hinge_softplus", "vanilla_softplus", "image_softplus"):
        loss = GENERATOR_LOSSES[name](fake)
        assert loss.item() == pytest.approx((softplus(0) + softplus(-2)) / 2)
    loss.backward()
    assert fake.grad[0].flatten().tolist() == [
        -0.125,
        -0.125,
    ]  # both patches alike, whatever their own logits
    expected = (softplus(1) + softplus(-1) + softplus(0) + softplus(2)) / 2
    assert DISCRIMINATOR_LOSSES["image_softplus"](real, fake).item() == pytest.approx(expected)
    for name, same in (("hinge_softplus", "hinge"), ("vanilla_softplus", "non_saturating")):
        assert DISCRIMINATOR_LOSSES[name] is DISCRIMINATOR_LOSSES[same]


def test_lecam_of_logits_moves_its_averages_first() -> None:
    lecam = LeCam(decay=0.9, form="logits")
    real, fake = torch.tensor([3.0, 1.0], requires_grad=True), torch.tensor([-2.0, 0.0])
    loss = lecam.step(real, fake, real.mean(), fake.mean())
    # averages 0.2 and -0.1: real logits are 3.1 and 1.1 above the second, fake ones 2.2 and 0.2 below the first
    assert loss.item() == pytest.approx((3.1**2 + 1.1**2) / 2 + (2.2**2 + 0.2**2) / 2)
    loss.backward()
    assert real.grad.tolist() == pytest.approx([3.1, 1.1])
    means = LeCam(decay=0.9)
    assert means.step(real, fake, real.mean(), fake.mean()).item() == pytest.approx(4.0 + 1.0)
    assert means.state_dict() == lecam.state_dict()
    with pytest.raises(ValueError, match="form='sum'"):
        LeCam(form="sum")
