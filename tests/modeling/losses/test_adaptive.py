"""Adaptive adversarial weight: reference value, bounds, processes."""

import pytest
import torch
from torch.nn import functional as F

from modeling.losses.adaptive import adaptive_weight
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
