"""The adversarial weight that balances gradients at the decoder's last layer (arXiv:2012.09841, eq. 7)."""

from collections.abc import Callable

import torch


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    adversarial_loss: torch.Tensor,
    last_layer: torch.Tensor,
    *,
    gain: float = 0.8,
    maximum: float = 1e4,
    average: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """gain * clamp(|grad reconstruction| / (|grad adversarial| + 1e-4), 0, maximum), both at `last_layer`.

    The graphs of both losses stay usable.

    Args:
        reconstruction_loss: pixel and perceptual terms, a scalar.
        adversarial_loss: the generator's unweighted loss, a scalar.
        last_layer: weight of the decoder's last convolution, on which both depend.
        gain: factor in front.
        maximum: upper bound of the ratio.
        average: mean over processes, applied to the gradients before their norms are taken, so that many processes
            weigh as one would; None for a single process.

    Returns:
        A scalar without gradient.
    """
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        gradient = gradient.float()
        norms.append((gradient if average is None else average(gradient)).norm())
    return gain * (norms[0] / (norms[1] + 1e-4)).clamp(0.0, maximum).detach()
