"""Linear probe of features: how well a linear classifier tells the classes, by the exact optimum of a convex problem.

Features are standardised by the training set, and mean cross entropy + decay / 2 |W|^2 is minimised to convergence, so
that a probe has no learning rate, no number of epochs and no seed.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

EPSILON = 1e-6  # added to the variance: constant features stay at zero
STEPS = 2000


class Probe(NamedTuple):
    """Mean loss on the training set without the decay term included, accuracies in 0 ... 1, norm of the weights."""

    train_loss: float
    train_accuracy: float
    test_accuracy: float
    weight_norm: float


def linear_probe(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    decay: float = 1e-3,
) -> Probe:
    """Probe features [N, d] with labels int64 [N] and test on others, float64 on the CPU.

    Raises:
        ValueError: shapes do not fit, values are not finite, labels are negative, or it does not converge.
    """
    for features, labels in ((train, train_labels), (test, test_labels)):
        if features.ndim != 2 or labels.shape != features.shape[:1] or features.shape[1] != train.shape[1]:
            raise ValueError(f"features {tuple(features.shape)} with labels {tuple(labels.shape)}")
        if not torch.isfinite(features).all() or not len(labels) or labels.min() < 0:
            raise ValueError("features must be finite and labels at least 0")
    if decay <= 0:
        raise ValueError(f"decay={decay} must be above 0: without it separable classes have no optimum")
    train, test = train.detach().cpu().double(), test.detach().cpu().double()
    train_labels, test_labels = train_labels.cpu().long(), test_labels.cpu().long()
    mean, scale = train.mean(dim=0), (train.var(dim=0, correction=0) + EPSILON).rsqrt()
    train, test = (train - mean) * scale, (test - mean) * scale
    classes = 1 + int(max(train_labels.max(), test_labels.max()))
    weight, bias = _minimum(train, train_labels, classes, decay)
    logits = train @ weight.T + bias
    loss = F.cross_entropy(logits, train_labels) + decay / 2 * weight.square().sum()
    return Probe(
        float(loss),
        float((logits.argmax(1) == train_labels).double().mean()),
        float(((test @ weight.T + bias).argmax(1) == test_labels).double().mean()),
        float(weight.norm()),
    )


def _minimum(
    features: torch.Tensor, labels: torch.Tensor, classes: int, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [C, d] and bias [C] at the optimum."""
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
        loss()
    gradient = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    if not gradient < 1e-6:
        raise ValueError(f"the probe did not converge in {STEPS} steps: a gradient of {gradient:.2g} is left")
    return weight.detach(), bias.detach()
