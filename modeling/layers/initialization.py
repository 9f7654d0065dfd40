"""Weight initialisation shared by the transformers of this code base."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

STD = 0.02  # of initial weights, as in BERT and GPT-2


def scaled_embedding(*shape: int) -> nn.Parameter:
    """A free embedding drawn from N(0, 1) times D^(-1/2), with D the last entry of `shape`."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def init_weights(model: nn.Module, draw: Callable[..., Tensor] = nn.init.normal_) -> None:
    """Linear and embedding weights of all parts from `draw`, with a standard deviation of 0.02; zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            draw(module.weight, std=STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def init_vit_weights(module: nn.Module, std: float | None = STD) -> None:
    """Initialise one module in place; meant for `nn.Module.apply`.

    Linear and convolution weights: normal with `std` truncated at +-2 (None: 1 / sqrt(inputs)); LayerNorm weights: 1;
    biases: 0.
    """
    # The joint projection of `SelfAttention` is a bare parameter: it keeps its Xavier-uniform values.
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        fan_in = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=fan_in**-0.5 if std is None else std, a=-2.0, b=2.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
