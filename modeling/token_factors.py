"""Tokens of a codebook too large for one softmax, as a few sub-tokens each (arXiv:2409.04410, section 3.2)."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch


class TokenFactors:
    """A token as digits of a mixed base, the first digit the least significant.

    With sizes 64 and 4096 the sub-tokens of a token of 2^18 are its low 6 and its high 12 bits. This works for any
    codebook whose size is the product of `sizes`. Raises ValueError unless every size is at least 2.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or min(sizes) < 2:
            raise ValueError(f"factors={list(sizes)} must be sizes of sub-tokens, each at least 2")
        self.sizes = tuple(sizes)
        self.codebook_size = math.prod(sizes)
        self._steps = [1, *accumulate(sizes[:-1], mul)]  # place values of the digits: (64, 4096) -> 1, 64

    def __len__(self) -> int:
        """Sub-tokens per token, G."""
        return len(self.sizes)

    def check(self, codebook_size: int) -> None:
        """Raise ValueError unless the product of the sizes is `codebook_size`."""
        if self.codebook_size != codebook_size:
            product = " x ".join(map(str, self.sizes))
            raise ValueError(
                f"factors {product} make {self.codebook_size} tokens, but the codebook has {codebook_size}"
            )

    def split(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int64 [...] in [0, codebook_size) -> sub-tokens int64 [..., G]."""
        # Python numbers: a tensor of them would be copied to the device at every step, and the host waits for that.
        digits = zip(self._steps, self.sizes, strict=True)
        return torch.stack([(tokens // step) % size for step, size in digits], dim=-1)

    def join(self, sub_tokens: torch.Tensor) -> torch.Tensor:
        """Sub-tokens int64 [..., G] -> tokens int64 [...]."""
        parts = zip(sub_tokens.unbind(dim=-1), self._steps, strict=True)
        return sum(part * step for part, step in parts)
