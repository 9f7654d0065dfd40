"""Cosine distillation: values and gradients worked out by hand."""

import pytest
import torch

from modeling.losses.distillation import feature_cosine, feature_distillation_loss


def as_map(*vectors):
    """Vectors as [1, F, 1, len]."""
    return torch.tensor(vectors).t()[None, :, None]


def test_values_and_gradients_by_hand():
    predictions = as_map([3.0, 0.0], [1.0, 1.0], [-2.0, 0.0]).requires_grad_()
    targets = as_map([5.0, 0.0], [0.0, 2.0], [1.0, 0.0])
    cosines = feature_cosine(predictions, targets)
    torch.testing.assert_close(cosines, torch.tensor([[[1.0, 0.5**0.5, -1.0]]]))
    loss = feature_distillation_loss(predictions, targets)
    assert loss.item() == pytest.approx(1 - 0.5**0.5 / 3)
    loss.backward()
    # d cos / dp = (t / |t| - cos p / |p|) / |p|: for (1, 1) and (0, 1) that is (-1, 1) / (2 sqrt 2).
    expected = torch.tensor([1.0, -1.0]) / (2 * 2**0.5) / 3
    torch.testing.assert_close(predictions.grad[0, :, 0, 1], expected)
    assert predictions.grad[0, :, 0, 0].abs().max() < 1e-6


def test_length_and_precision_do_not_matter():
    predictions, targets = torch.randn(2, 6, 3, 3), torch.randn(2, 6, 3, 3)
    loss = feature_distillation_loss(predictions, targets)
    torch.testing.assert_close(feature_distillation_loss(7 * predictions, 0.1 * targets), loss)
    assert feature_distillation_loss(predictions.bfloat16(), targets).dtype == torch.float32


def test_other_shapes_are_refused_instead_of_broadcast():
    with pytest.raises(ValueError, match=r"\(1, 4, 2, 2\) were predicted, expected \(1, 4, 1, 1\)"):
        feature_cosine(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 1, 1))
