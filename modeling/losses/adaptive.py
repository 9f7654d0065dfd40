"""The adversarial weight that balances gradients at the decoder's last layer (arXiv:2012.09841, eq. 7)."""

from collections.abc import Callable

import torch

# Gradients of a mean over all pixels are below what float16 can hold; the largest weight gradient allowed is 16.
FLOAT16_SCALE = 2.0**12


def adaptive_weight(
    reconstruction_loss: torch.Tensor,
    adversarial_loss: torch.Tensor,
    last_layer: torch.Tensor,
    *,
    gain: float = 0.8,
    maximum: float = 1e4,  # of the ratio
    average: Callable[[torch.Tensor], torch.Tensor] | None = None,
    scale: float = 1.0,  # of both losses while their gradients are computed: `FLOAT16_SCALE` for a decoder in float16
) -> torch.Tensor:
    """gain * clamp(|grad reconstruction| / (|grad adversarial| + 1e-4), 0, maximum), both at `last_layer`; no gradient.

    Takes the scalar pixel and perceptual terms, the generator's unweighted loss, and the weight of the decoder's last
    convolution, on which both depend; the graphs of both losses stay usable. `average` is the mean over processes.
    """
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(
            scale * loss, last_layer, retain_graph=True
        )  # both graphs are needed again
        gradient = gradient.float() / scale
        norms.append((gradient if average is None else average(gradient)).norm())
    return gain * (norms[0] / (norms[1] + 1e-4)).clamp(0.0, maximum).detach()
