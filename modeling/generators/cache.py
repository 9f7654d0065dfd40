"""Key-value cache of one generation, allocated once at its final size."""

import torch
import torch.nn.functional as F
from torch import Tensor


class KVCache:
    """Keys and values of every layer for `length` positions of `rows` sequences.

    `example` `[..., D]` tells the width, the device and, outside autocast, the dtype.
    """

    def __init__(self, *, depth: int, rows: int, num_heads: int, length: int, example: Tensor) -> None:
        device, head_dim = example.device, example.shape[-1] // num_heads
        autocast = torch.is_autocast_enabled(device.type)
        self.dtype = dtype = torch.get_autocast_dtype(device.type) if autocast else example.dtype
        # On a CPU, one query against keys laid out [d, length] takes half to two thirds of the time of the fused
        # kernel, which is made for many queries. Only in float32: the fused one keeps its softmax in float32.
        self._keys_transposed = device.type == "cpu" and dtype == torch.float32
        last = (head_dim, length) if self._keys_transposed else (length, head_dim)
        self._keys = torch.empty((depth, rows, num_heads, *last), dtype=dtype, device=device)
        self._values = torch.empty((depth, rows, num_heads, length, head_dim), dtype=dtype, device=device)

    def attend(self, layer: int, position: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store one position's key and value, then attend from it to itself and all earlier positions.

        Positions must come in ascending order without gaps. All tensors are `[R, H, d]`.
        """
        keys, values = self._keys[layer], self._values[layer]
        filled = position + 1
        values[:, :, position] = value
        query = query.unsqueeze(2)  # [R, H, 1, d]
        if self._keys_transposed:
            keys[..., position] = key
            scores = (query * query.shape[-1] ** -0.5) @ keys[..., :filled]  # a view: nothing is copied
            return (scores.softmax(dim=-1) @ values[:, :, :filled]).squeeze(2)
        keys[:, :, position] = key
        # No causal mask: the prefix holds nothing later than the query.
        return F.scaled_dot_product_attention(query, keys[:, :, :filled], values[:, :, :filled]).squeeze(2)
