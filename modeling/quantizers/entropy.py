"""Entropy regularisation of code assignments (arXiv:2310.05737, section 3.2)."""

import torch

from common.distributed import all_reduce_mean


def entropy_loss(affinity: torch.Tensor, temperature: float = 0.01) -> torch.Tensor:
    """Mean entropy of the assignments minus the entropy of their mean: low if choices are clear and all codes are used.

    `affinity` [M, K] is higher where a code fits better, such as negative squared distances. The mean runs over the
    tokens of all processes. Returns a scalar in nats, between -log K and 0 (up to the guard in the second log).
    """
    logs = torch.log_softmax(affinity.float() / temperature, dim=-1)  # [M, K]
    shares = logs.exp()
    per_token = -(shares * logs).sum(dim=-1).mean()
    mean = shares.mean(dim=0)
    mean = mean + (all_reduce_mean(mean) - mean).detach()  # global value, local gradient: DDP averages it
    return per_token + (mean * (mean + 1e-5).log()).sum()  # 1e-5: unused codes have log 0
