"""Models whose weights were cast to bfloat16 or float16: `precision=` of scripts and loaders, `.bfloat16()`, `.half()`.

They compute in the dtype of their weights, but for norms, softmax and sampling, which are float32 inside, and for the
choice of codes: quantizers take and give float32. So whatever enters a network passes `as_weights`.
"""

import torch
from torch import nn

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
HALF_PRECISIONS = ("bfloat16", "float16")


def stated(precision: str) -> str | None:
    """What results say of a precision: None for float32, in which results were made before there was a choice."""
    return None if precision == "float32" else precision


def as_weights(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """`x` in the dtype of the module's weights: nothing happens to float32 in a float32 module, under autocast too."""
    return x.to(next(module.parameters()).dtype)
