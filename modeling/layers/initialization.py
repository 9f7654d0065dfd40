"""Weight initialisation shared by the transformers of this code base."""

import torch
from torch import nn


def scaled_embedding(*shape: int) -> nn.Parameter:
    """A free embedding drawn from N(0, 1) times D^(-1/2), with D the last entry of `shape`."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def init_vit_weights(module: nn.Module, std: float | None = 0.02) -> None:
    """Initialise one module in place; meant for `nn.Module.apply`.

    Linear and convolution weights: normal with `std` truncated at +-2 (None: 1 / sqrt(inputs)); LayerNorm weights: 1;
    biases: 0.
    The joint query-key-value projection of `SelfAttention` is a bare parameter and keeps its Xavier-uniform
    values.
    """
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        fan_in = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=fan_in**-0.5 if std is None else std, a=-2.0, b=2.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
