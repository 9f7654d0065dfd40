"""GAN losses against hand-computed values and gradients."""

import math

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
    for name in ("hinge", "vanilla"):
        assert_close(DISCRIMINATOR_LOSSES[name](real, fake), data[f"{name}_d"], atol=0, rtol=1e-5)
    assert_close(GENERATOR_LOSSES["hinge"](fake), data["hinge_g"], atol=0, rtol=1e-5)
    assert_close(GENERATOR_LOSSES["non_saturating"](fake), data["nonsaturating_g"], atol=0, rtol=1e-5)


def test_vanilla_and_non_saturating_gradients_point_the_right_way() -> None:
    real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    loss = DISCRIMINATOR_LOSSES["vanilla"](real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert real.grad.tolist() == [-0.125, -0.125] and fake.grad.tolist() == [0.125, 0.125]
    logits = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    loss = GENERATOR_LOSSES["non_saturating"](logits)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.tolist() == [-0.25, -0.25]
