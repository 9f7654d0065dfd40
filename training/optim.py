"""AdamW with the decay-exclusion rule of the released recipes."""

import torch
from torch import nn

from training.settings import OptimizerSettings

# Substrings of parameter names that exempt from weight decay. Plain substring tests are part of the published
# recipes: "embed" covers patch embeddings, "ln" also the final adaLN layer of RAR.
NO_DECAY = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: at least two dimensions, and no exempting substring in the name."""
    return parameter.ndim >= 2 and not any(part in name for part in NO_DECAY)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups over the trainable parameters of `module`: without decay first, then with."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": weight_decay},
    ]


def build_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`; the trainer sets the learning rate at every step."""
    return torch.optim.AdamW(
        parameter_groups(module, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
