"""Linear layers for decoding, where the same weights meet a few rows again and again."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _onednn_helps(weight: Tensor) -> bool:
    """Float32 on a CPU whose PyTorch has oneDNN's linear; other types and devices have fast paths already."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class FrozenLinear:
    """Applies an `nn.Linear` whose weights do not change meanwhile; no gradients.

    In float32 on a CPU this takes oneDNN where PyTorch would take BLAS. Measured on one AVX-512 core,
    768 -> 3072, 8 rows: 1.03 ms with `nn.Linear`, 0.68 ms here, 0.39 ms with packed weights.

    Args:
        packed_rows: pack a copy of the weights for this number of input rows, which pays off for weights that are
            used many times. None uses the weights as they are.
        gelu: apply exact GELU to the result.
    """

    def __init__(self, layer: nn.Linear, *, packed_rows: int | None = None, gelu: bool = False) -> None:
        self._weight = layer.weight.detach()
        # Zeros in place of a missing bias, so that one code path serves all layers.
        bias = self._weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
        self._bias, self._gelu = bias.detach(), gelu
        self._onednn = _onednn_helps(self._weight)
        if self._onednn and packed_rows is not None:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, packed_rows)

    def __call__(self, x: Tensor) -> Tensor:
        if self._onednn:
            activation, variant = ("gelu", "none") if self._gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, activation, [], variant)
        y = F.linear(x, self._weight, self._bias)
        return F.gelu(y) if self._gelu else y
