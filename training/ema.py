"""Exponential moving average of a module's weights, kept as a second module that can be used directly."""

import copy

import torch
from torch import nn

from storage.shards import local


def ema_decay(updates: int, cap: float) -> float:
    """Decay of the n-th update (n = 1, 2, ...): 0 for the first, then (1 + s) / (10 + s) with s = n - 1, up to `cap`.

    The short memory at the beginning forgets the random initialisation.
    """
    s = max(0, updates - 1)
    return 0.0 if s == 0 else min(cap, (1 + s) / (10 + s))


class EMA:
    """Averaged copy `module` of a module, in eval mode: trainable parameters are averaged, the rest is copied."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, updates: int) -> None:
        """Move towards `source` after its `updates`-th optimizer update: shadow <- shadow + (1 - d)(param - shadow)."""
        weight = 1.0 - ema_decay(updates, self.decay)
        averaged: tuple[list, list] = ([], [])
        copied: tuple[list, list] = ([], [])
        for shadow, parameter in zip(self.module.parameters(), source.parameters(), strict=True):
            group = averaged if parameter.requires_grad else copied
            group[0].append(local(shadow))  # of sharded ones every process averages its part
            group[1].append(local(parameter.detach()))
        for shadow, buffer in zip(self.module.buffers(), source.buffers(), strict=True):
            copied[0].append(shadow)
            copied[1].append(buffer)
        if averaged[0]:
            # One kernel for all tensors instead of one each.
            torch._foreach_lerp_(averaged[0], averaged[1], weight)
        if copied[0]:
            torch._foreach_copy_(copied[0], copied[1])
