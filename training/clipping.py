"""Clipping of gradients, sharded or not."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from storage.shards import local, whole


def clip_gradient(module: nn.Module, max_norm: float | None) -> torch.Tensor | None:
    """Clip the L2 norm of a module's gradient; returns the norm before as a scalar, or None without a limit."""
    if max_norm is None:
        return None
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not sharded:
        return nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    replicated = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norms = [whole(nn.utils.get_total_norm(part)) for part in (sharded, replicated) if part]
    norm = torch.stack(norms).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch does it
    torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
    return norm
