"""Adaptive adversarial weight: reference value, bounds, processes."""

import pytest
import torch
from torch.nn import functional as F

from modeling.losses.adaptive import FLOAT16_SCALE, adaptive_weight
from tests.parity import assert_close, golden


def test_it_equals_the_reference() -> None:
    data = {name: torch.from_numpy(array) for name, array in golden("ut_losses_metrics").items()}
    layer = data["last_weight"].requires_grad_()
    images = F.conv2d(data["feature"], layer, padding=1)
    difference = data["target"] - images
    reconstruction = difference.abs().mean() + difference.square().mean()
    adversarial = -(images * data["mask"]).mean()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert_close(weight, data["adaptive_weight"].numpy(), atol=0, rtol=1e-5)
    assert not weight.requires_grad and layer.grad is None
    twice = adaptive_weight(reconstruction, adversarial, layer, gain=1.6)
    torch.testing.assert_close(twice, 2 * weight)
    (reconstruction + weight * adversarial).backward()  # the graphs were not freed
    assert layer.grad.abs().sum() > 0


def test_bounds_and_hand_computed_ratio() -> None:
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (layer * torch.tensor([6.0, 8.0])).sum(), 2 * layer[0]
    assert adaptive_weight(reconstruction, adversarial, layer, gain=1.0).item() == pytest.approx(10 / 2.0001)
    assert adaptive_weight(reconstruction, 0 * layer[0], layer, gain=0.5).item() == 5e3
    assert adaptive_weight(reconstruction, adversarial, layer, gain=1.0, maximum=3.0).item() == 3.0


def test_norms_are_taken_after_averaging() -> None:
    layer = torch.tensor([1.0, 1.0], requires_grad=True)
    reconstruction, adversarial = 4 * layer[0], layer[1]
    other = iter([torch.tensor([0.0, 4.0]), torch.tensor([0.0, -1.0])])  # the gradients of another process
    weight = adaptive_weight(
        reconstruction, adversarial, layer, gain=1.0, average=lambda gradient: (gradient + next(other)) / 2
    )
    assert weight.item() == pytest.approx(1e4)  # the adversarial gradients cancel: 8^0.5 / 1e-4, bounded


def test_gradients_of_a_decoder_in_float16_do_not_vanish() -> None:
    random = torch.Generator().manual_seed(0)
    layer = (0.1 * torch.randn(3, 8, 1, 1, generator=random)).requires_grad_()
    features = torch.randn(8, 8, 128, 128, generator=random)
    with torch.no_grad():
        target = F.conv2d(features, layer) + 0.05 * features[:, :3]

    def weight(dtype: torch.dtype, **options: float) -> float:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            images = F.conv2d(features, layer).float()
        # As small for every pixel as in a batch of 32 images of 256 x 256.
        losses = 0.01 * (images - target).square().mean(), 0.003 * (images * features[:, 3:6]).mean()
        return adaptive_weight(*losses, layer, **options).item()

    exact = weight(torch.float32)
    assert weight(torch.float16, scale=FLOAT16_SCALE) == pytest.approx(exact, rel=0.03)
    assert weight(torch.float16) < 0.5 * exact  # what the scale is for
