"""Optimizers: AdamW with the decay-exclusion rule of the released recipes, and Muon for transformer blocks."""

import torch
from torch import nn

from modeling.layers.trainable import Trainable, blocks, published_decay
from training.muon import MuonAdamW
from training.settings import OptimizerSettings


def parameter_groups(module: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """Groups over the trainable parameters: AdamW without decay, AdamW with decay, then those of Muon if it is on.

    Muon trains matrices of transformer blocks, in groups by the number of projections that are stacked in them.
    `ratio` is a group's learning rate relative to the schedule.
    """
    projections: dict[nn.Parameter, int] = {}
    if settings.muon_learning_rate is not None:
        for block in blocks(module):
            projections |= block.muon_projections()
    decays = module.decays if isinstance(module, Trainable) else published_decay
    kept: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    muon: dict[int, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter in projections:
            muon.setdefault(projections[parameter], []).append(parameter)
        else:
            (decayed if decays(name, parameter) else kept).append(parameter)
    groups = [
        {"params": kept, "weight_decay": 0.0, "ratio": 1.0},
        {"params": decayed, "weight_decay": settings.weight_decay, "ratio": 1.0},
    ]
    for count in sorted(muon):
        ratio = settings.muon_learning_rate / settings.learning_rate
        group = {"params": muon[count], "weight_decay": settings.weight_decay, "ratio": ratio}
        groups.append(group | {"fused_projections": count})
    return groups


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Optimizer over the trainable parameters of `module`; the trainer sets the learning rate at every step."""
    kind = torch.optim.AdamW if settings.muon_learning_rate is None else MuonAdamW
    return kind(
        parameter_groups(module, settings),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
