"""Finite scalar quantization (arXiv:2309.15505): every channel is rounded to a few levels; no codebook to learn."""

import math
from collections.abc import Sequence

import torch

from modeling.quantizers.base import Quantizer, QuantizerOutput

_STEEP = 1.5  # where the slope of the tanh has fallen to 0.18


class FSQ(Quantizer):
    """Bounded channels, rounded, with straight-through gradient; no parameters.

    Channel c takes L_c values spaced 1 / floor(L_c / 2): in [-1, 1] for odd L, in [-1, 1 - 2 / L] for even L. The
    token is the number with digits q_c + floor(L_c / 2) in the mixed base of the levels, the first channel fastest.

    Args:
        levels: values per channel L, each at least 3; the codebook has their product. Recommended (table 1): 8, 6, 5
            for 2^8 codes; 8, 5, 5, 5 for 2^10; 7, 5, 5, 5, 5 for 2^12; 8, 8, 8, 6, 5 for 2^14; 8, 8, 8, 5, 5, 5
            for 2^16.
        eps: how much less than the outermost rounding border the bounded channels reach; negative values reach
            beyond it, as in a widespread other implementation (-0.001).
        saturation_cost: weight of the only loss, `quantizer_loss` = cost mean(relu(|latents| - 1.5)^2), ours and not
            the paper's. Beyond 1.5 the tanh has less than a fifth of its slope, and a quickly trained encoder does not
            come back, so that all tokens become alike.
    """

    def __init__(self, *, levels: Sequence[int], eps: float = 1e-3, saturation_cost: float = 0.0) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(
                f"levels={list(levels)} must be at least one channel, each with at least 3 levels"
            )
        if not -0.1 <= eps < 0.1:
            raise ValueError(f"eps={eps} must be small, between -0.1 and 0.1")
        if not saturation_cost >= 0:
            raise ValueError(f"saturation_cost={saturation_cost} must not be negative")
        self.saturation_cost = saturation_cost
        self.codebook_size = math.prod(levels)
        self.code_dim = self.latent_channels = len(levels)
        self.bits_per_token = math.log2(self.codebook_size)
        bounds = [(level - 1) * (1.0 - eps) / 2.0 for level in levels]  # half the range
        offsets = [0.0 if level % 2 else 0.5 for level in levels]  # even levels have no middle value
        shifts = [math.atanh(offset / bound) for offset, bound in zip(offsets, bounds, strict=True)]
        halves = [float(level // 2) for level in levels]
        steps = [math.prod(levels[:channel]) for channel in range(len(levels))]  # place values of the digits
        # Buffers, because a tensor made of a list in every forward would be a copy to the device each time.
        for name, values in dict(bounds=bounds, offsets=offsets, shifts=shifts, halves=halves).items():
            self.register_buffer(f"_{name}", torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        for name, integers in dict(steps=steps, levels=list(levels)).items():
            self.register_buffer(f"_{name}", torch.tensor(integers)[:, None], persistent=False)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        with torch.autocast(latents.device.type, enabled=False):
            bounded = self._bound(latents)
            rounded = bounded.detach().round()
            quantized = (bounded + (rounded - bounded).detach()) / self._halves  # straight-through
            losses = {}
            if self.saturation_cost:
                beyond = torch.relu(latents.float().abs() - _STEEP)
                losses["quantizer_loss"] = self.saturation_cost * beyond.square().mean()
        return QuantizerOutput(quantized=quantized, tokens=self._tokens(rounded), losses=losses)

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:  # Bounded like the codes but not rounded
        with torch.autocast(latents.device.type, enabled=False):
            return self._bound(latents) / self._halves

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        digits = torch.div(tokens[:, None], self._steps, rounding_mode="floor") % self._levels  # [B, C, N]
        return (digits.unsqueeze(2) - self._halves) / self._halves  # [B, C, 1, N]

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self._tokens(self._bound(latents).round())

    def _bound(self, latents: torch.Tensor) -> torch.Tensor:
        """Channels squeezed into the range of their levels (appendix A.1; atanh instead of tan keeps 0 exactly)."""
        return torch.tanh(latents.float() + self._shifts) * self._bounds - self._offsets

    def _tokens(self, rounded: torch.Tensor) -> torch.Tensor:  # Whole numbers [B, C, H, W] -> [B, H * W]
        return ((rounded + self._halves).long().flatten(2) * self._steps).sum(dim=1)
