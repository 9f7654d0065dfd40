"""Muon: momentum updates with orthogonalised matrices, for the weights inside transformer blocks.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; arXiv:2502.16982. docs/training.md
shows its effect on small tokenizers on a CPU.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from storage.shards import sharded_like, whole

# Quintic iteration that drives all singular values towards 1 quickly instead of exactly.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95


def orthogonalize(matrices: Tensor) -> Tensor:
    """Set the singular values of matrices [..., rows, columns] to about 1 (0.7 ... 1.2), keeping the vectors."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # so that the Gram matrix is the smaller one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # Frobenius norm: all singular values at most 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """Muon for parameter groups that have `fused_projections`, AdamW for all others.

    `fused_projections` is the number of matrices stacked in each parameter of the group along dimension 0 (3 for a
    joint query-key-value projection); each is orthogonalised by itself. Weight decay is decoupled, as in AdamW.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Fused AdamW looks for overflow by itself under fp16 scaling; Muon relies on the scaler skipping the step.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """`closure` must be None."""
        gradients = []
        for group in self.param_groups:
            if "fused_projections" in group:
                gradients += [(p, p.grad) for p in group["params"] if p.grad is not None]
                self._step_group(group)
        # AdamW skips parameters without gradient: those that Muon has updated. Their gradients come back after.
        for parameter, _ in gradients:
            parameter.grad = None
        super().step(closure)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    def _step_group(self, group: dict) -> None:
        by_shape: dict[tuple, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            update = parameter.grad.lerp(state["momentum"], MOMENTUM)  # Nesterov
            # Matrices of one shape in one batched product; sharded ones one by one, because each is gathered for it.
            alone = id(parameter) if isinstance(parameter, DTensor) else None
            by_shape[(*parameter.shape, alone)].append((parameter, whole(update)))
        for (rows, columns, _), pairs in by_shape.items():
            count = group["fused_projections"]
            stacked = torch.stack([u for _, u in pairs]).view(len(pairs), count, rows // count, columns)
            scale = max(1.0, rows / count / columns) ** 0.5  # tall matrices get larger updates
            updates = orthogonalize(stacked).reshape(len(pairs), rows, columns) * scale
            for (parameter, _), update in zip(pairs, updates, strict=True):
                update = sharded_like(update, parameter)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
