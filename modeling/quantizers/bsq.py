"""Binary spherical quantization (arXiv:2406.07548): the signs of a unit vector, which are a unit vector too."""

import torch
from torch.nn import functional as F

from modeling.quantizers.lfq import LFQ


class BSQ(LFQ):
    """Lookup-free quantization of latents of length 1 with codes of length 1: the values are +-1 / sqrt(bits).

    Options, tokens and losses are those of `LFQ`, with u = v / |v| for v. So the quantization error is bounded.

    The softmax over codes e has the scores -|u - e|^2 = 2 u e - 2 at temperature T, which makes bit c equal to 1 with
    probability sigmoid(4 u_c / (T sqrt(bits))). Scores tau u e with an inverse temperature tau, as in the paper, make
    that sigmoid(2 tau u_c / sqrt(bits)), the same for tau = 2 / T. The entropy of the mean over tokens is exact here,
    where the paper approximates it by the product of the means of the bits.
    """

    @property
    def magnitude(self) -> float:
        """Value of a channel of a code, up to its sign."""
        return self.code_dim**-0.5

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, bits, H, W] on the unit sphere, float32, with gradient."""
        return F.normalize(latents.float(), dim=1)
