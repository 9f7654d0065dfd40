"""Optimizers: AdamW with the decay-exclusion rule of the released recipes, and Muon for transformer blocks."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from modeling.layers.trainable import Trainable, blocks
from training.muon import MuonAdamW
from training.settings import OptimizerSettings


def parameter_groups(module: Trainable, settings: OptimizerSettings) -> list[dict]:
    """Optimizer groups: AdamW without decay, AdamW with decay, then Muon (if on), one group per stacked projections.

    `ratio` is a group's learning rate relative to the schedule; `decays` says whether it follows that of the decay.
    """
    projections: dict[nn.Parameter, int] = {}
    if settings.muon_learning_rate is not None:
        for block in blocks(module):
            projections |= block.muon_projections()
    kept, decayed = [], []
    muon: dict[int, list[nn.Parameter]] = {}  # by the number of stacked projections
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter in projections:
            muon.setdefault(projections[parameter], []).append(parameter)
        else:
            (decayed if module.decays(name, parameter) else kept).append(parameter)
    groups = [
        {"params": kept, "weight_decay": 0.0, "ratio": 1.0, "decays": False},
        {"params": decayed, "weight_decay": settings.weight_decay, "ratio": 1.0, "decays": True},
    ]
    for count in sorted(muon):
        ratio = settings.muon_learning_rate / settings.learning_rate
        groups.append(groups[1] | {"params": muon[count], "ratio": ratio, "fused_projections": count})
    return [part for group in groups for part in _by_kind(group)]


def _by_kind(group: dict) -> list[dict]:
    """The group; as two if the module is sharded, but not all of it: no kernel takes both kinds of tensors."""
    sharded = [isinstance(parameter, DTensor) for parameter in group["params"]]
    if not any(sharded) or all(sharded):
        return [group]
    pairs = list(zip(group["params"], sharded, strict=True))
    return [group | {"params": [p for p, kind in pairs if kind is wanted]} for wanted in (True, False)]


def build_optimizer(module: Trainable, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Optimizer over the trainable parameters; the trainer sets learning rate and decay at every step."""
    kind = torch.optim.AdamW if settings.muon_learning_rate is None else MuonAdamW
    return kind(
        parameter_groups(module, settings),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,  # one kernel for all parameters
    )
