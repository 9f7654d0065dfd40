"""Entropy regularisation of code assignments (arXiv:2310.05737, section 3.2)."""

import torch

from common.distributed import all_reduce_mean


def entropy_loss(affinity: torch.Tensor, temperature: float = 0.01) -> torch.Tensor:
    """Mean entropy of the assignments minus the entropy of their mean, in nats: low when single choices are clear
    and all codes are chosen.

    The mean runs over the tokens of all processes; its gradient is that of the local part, which the averaging of
    gradients over processes completes.

    Args:
        affinity: [M, K], higher where a code fits better, such as negative squared distances.
        temperature: of the softmax over codes, above 0.

    Returns:
        A scalar between -log K and 0 (up to the guard of 1e-5 inside the second logarithm).
    """
    logs = torch.log_softmax(affinity.float() / temperature, dim=-1)
    shares = logs.exp()
    per_token = -(shares * logs).sum(dim=-1).mean()
    mean = shares.mean(dim=0)
    mean = mean + (all_reduce_mean(mean) - mean).detach()
    return per_token + (mean * (mean + 1e-5).log()).sum()
