"""Binary spherical quantization (arXiv:2406.07548): the signs of a unit vector, which are a unit vector too."""

import torch
from torch.nn import functional as F

from modeling.quantizers.lfq import LFQ


class BSQ(LFQ):
    """Lookup-free quantization of latents of length 1 with codes of length 1: the values are +-1 / sqrt(bits).

    Options, tokens and losses are those of `LFQ`, with u = v / |v| for v, which bounds the quantization error. Scores
    -|u - e|^2 at temperature T make bit c equal to 1 with probability sigmoid(4 u_c / (T sqrt(bits))); the paper's
    inverse temperature is tau = 2 / T. The entropy of the mean over tokens is exact; the paper approximates it by the
    product of the means of the bits.
    """

    @property
    def magnitude(self) -> float:  # of a channel: codes have length 1
        return self.code_dim**-0.5

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:  # [B, bits, H, W] on the unit sphere
        return F.normalize(latents.float(), dim=1)
