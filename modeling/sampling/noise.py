"""The randomness of masked sampling: where it comes from is not the sampler's business."""

from typing import Protocol

import torch
from torch import Tensor

from modeling.sampling.autoregressive import choose_tokens

_SMALLEST = 1e-20  # of what a logarithm is taken of
_ENTRIES = 2**22  # float64 probabilities per piece: 32 MB, however large batch and codebook are


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise `-log(-log(u))` of uniform numbers in `[0, 1)`, any shape."""
    return -(-uniform.clamp(min=_SMALLEST).log()).clamp(min=_SMALLEST).log()


class MaskedNoise(Protocol):
    """What `sample_masked` asks for in every step whose temperature is above 0."""

    def choose(self, logits: Tensor, temperature: float, step: int) -> Tensor:
        """Draw from `softmax(logits / temperature)`: `[B, N, V]` -> int64 `[B, N]`."""
        ...

    def confidence(self, step: int) -> Tensor:
        """Standard Gumbel noise `[B, N]`; decides with the logits which tokens stay."""
        ...


class SampleNoise:
    """Noise from given numbers: sample b depends on row b alone, whatever the batch it is in.

    Args:
        uniforms: float64 `[B, num_steps, 2, N]` in `[0, 1)`: per step and place one number for the token and
            one for the confidence.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, uniforms: Tensor) -> None:
        if uniforms.ndim != 4 or uniforms.shape[2] != 2:
            raise ValueError(f"uniforms have shape {list(uniforms.shape)}, expected [B, num_steps, 2, N]")
        self._uniforms = uniforms.double()

    def choose(self, logits: Tensor, temperature: float, step: int) -> Tensor:
        """Invert the distribution function at every place; see `MaskedNoise.choose`.

        Raises:
            ValueError: the uniforms are for another number of samples, places or steps.
        """
        batch, num_steps, _, num_tokens = self._uniforms.shape
        if (batch, num_tokens) != logits.shape[:2] or step >= num_steps:
            expected = f"{batch} samples of {num_tokens} tokens in {num_steps} steps"
            raise ValueError(
                f"step {step}: logits have shape {list(logits.shape)}, the uniforms are for {expected}"
            )
        uniform = self._uniforms[:, step, 0].to(logits.device).flatten()
        rows = max(_ENTRIES // logits.shape[-1], 1)
        pieces = zip(logits.flatten(0, 1).split(rows), uniform.split(rows), strict=True)
        chosen = torch.cat([choose_tokens(piece, temperature, numbers) for piece, numbers in pieces])
        return chosen.view(batch, num_tokens)

    def confidence(self, step: int) -> Tensor:
        """See `MaskedNoise.confidence`."""
        return gumbel(self._uniforms[:, step, 1])
