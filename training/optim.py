"""Optimizers: AdamW with the decay-exclusion rule of the released recipes, and Muon for transformer blocks."""

import torch
from torch import nn

from training.muon import MuonAdamW
from training.settings import OptimizerSettings

# Substrings of parameter names that exempt from weight decay. Plain substring tests are part of the published
# recipes: "embed" covers patch embeddings, "ln" also the final adaLN layer of RAR.
NO_DECAY = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed")
# Modules whose matrices Muon may train, and how many projections some of them stack along dimension 0.
BLOCKS = ("transformer.", "blocks.", "mid_block.", "encoder.layer.", "layers.")
STACKED = {
    "in_proj_weight": 3,
    "attn.qkv.weight": 3,
    "attention.wqkv.weight": 3,
    "adaLN_modulation.1.weight": 6,
    "ada_lin.1.weight": 6,
}


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: at least two dimensions, and no exempting substring in the name."""
    return parameter.ndim >= 2 and not any(part in name for part in NO_DECAY)


def muon_projections(name: str, parameter: nn.Parameter) -> int:
    """Number of projections stacked in a matrix of a transformer block; 0 for what AdamW trains."""
    if parameter.ndim != 2 or not any(part in name for part in BLOCKS):
        return 0
    return next((count for end, count in STACKED.items() if name.endswith(end)), 1)


def parameter_groups(module: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """Groups over the trainable parameters: AdamW without decay, AdamW with decay, then those of Muon if it is on.

    `ratio` is a group's learning rate relative to the schedule.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    muon: dict[int, list[nn.Parameter]] = {}
    if settings.muon_learning_rate is not None:
        for name, parameter in named:
            muon.setdefault(muon_projections(name, parameter), []).append(parameter)
        named = [(n, p) for n, p in named if not muon_projections(n, p)]
    groups = [
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0, "ratio": 1.0},
        {
            "params": [p for n, p in named if decays(n, p)],
            "weight_decay": settings.weight_decay,
            "ratio": 1.0,
        },
    ]
    for count in sorted(muon.keys() - {0}):
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
