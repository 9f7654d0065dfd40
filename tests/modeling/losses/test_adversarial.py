"""GAN losses against hand-computed values and gradients."""

import pytest
import torch

from modeling.losses.adversarial import LeCam, generator_loss, hinge_discriminator_loss


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
