"""Random numbers for the samplers. Every sample has its own, so batch size and number of processes don't matter."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from modeling.sampling.autoregressive import choose_tokens

_SMALLEST = 1e-20  # of what a logarithm is taken of
_ENTRIES = 2**22  # float64 probabilities per piece: 32 MB, however large batch and codebook are


def sample_uniforms(seed: int, indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """The random numbers of the samples with the given indices; each row depends on (seed, index) alone.

    Returns:
        float64 `[len(indices), count]` in `[0, 1)`, on the CPU.

    Raises:
        ValueError: `seed` or an index is negative.
    """
    indices = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    if min([seed, *indices]) < 0:
        raise ValueError(f"seed={seed} and sample indices must not be negative")
    rows = np.empty((len(indices), count))
    for row, index in zip(rows, indices, strict=True):
        key = np.array([seed, index], dtype=np.uint64)  # Philox: every key is a stream of its own
        row[:] = np.random.Generator(np.random.Philox(key=key)).random(count)
    return torch.from_numpy(rows)


def generator_uniforms(generators: Sequence[torch.Generator], count: int) -> Tensor:
    """Random numbers of one sample per `torch.Generator`, an alternative to `sample_uniforms`.

    Each generator advances by `count` numbers.

    Returns:
        float64 `[len(generators), count]` in `[0, 1)`, on the CPU.

    Raises:
        ValueError: there are no generators.
    """
    if not generators:
        raise ValueError("generators are empty, expected one per sample")
    rows = [torch.rand(count, dtype=torch.float64, device=g.device, generator=g) for g in generators]
    return torch.stack([row.cpu() for row in rows])


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise `-log(-log(u))` of uniform numbers in `[0, 1)`, any shape."""
    return -(-uniform.clamp(min=_SMALLEST).log()).clamp(min=_SMALLEST).log()


class MaskedNoise(Protocol):
    """The randomness of `sample_masked`, asked for in every step whose temperature is above 0."""

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
        ValueError: the uniforms have another shape, or do not fit the logits in `choose`.
    """

    def __init__(self, uniforms: Tensor) -> None:
        if uniforms.ndim != 4 or uniforms.shape[2] != 2:
            raise ValueError(f"uniforms have shape {list(uniforms.shape)}, expected [B, num_steps, 2, N]")
        self._uniforms = uniforms.double()

    def choose(self, logits: Tensor, temperature: float, step: int) -> Tensor:
        batch, num_steps, _, num_tokens = self._uniforms.shape
        if (batch, num_tokens) != logits.shape[:2] or step >= num_steps:
            expected = f"{batch} samples of {num_tokens} tokens in {num_steps} steps"
            raise ValueError(
                f"step {step}: logits have shape {list(logits.shape)}, the uniforms are for {expected}"
            )
        uniform = self._uniforms[:, step, 0].to(logits.device).flatten()  # [B * N]
        rows = max(_ENTRIES // logits.shape[-1], 1)
        pieces = zip(logits.flatten(0, 1).split(rows), uniform.split(rows), strict=True)
        chosen = torch.cat([choose_tokens(piece, temperature, numbers) for piece, numbers in pieces])
        return chosen.view(batch, num_tokens)

    def confidence(self, step: int) -> Tensor:
        return gumbel(self._uniforms[:, step, 1])
