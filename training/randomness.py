"""Random numbers that depend on the seed and the step or example alone.

No generator state is carried from step to step: a resumed run draws the same numbers, and those of an example are the
same on any number of processes.
"""

import hashlib
from collections.abc import Callable

import torch

from common import distributed


def mix(*parts: int | str) -> int:
    """A 63-bit seed from integers and words; different arguments give unrelated seeds."""
    digest = hashlib.blake2b("/".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # not hash(), which differs between processes


def seed_step(seed: int, step: int) -> None:
    """Seed torch's global generators (dropout and the like) for one step of this process."""
    torch.manual_seed(mix(seed, "step", step, distributed.rank()))


class ExampleRandom:
    """Random numbers of the examples of one batch, each from its own generator.

    `positions` [B] are places in the stream (data/stream.py), which never repeat within a run.
    """

    def __init__(self, seed: int, positions: torch.Tensor):
        self.seed = seed
        self.positions = positions.tolist()

    def uniform(self, purpose: str, *shape: int) -> torch.Tensor:
        """[B, *shape] in [0, 1), float32 on the CPU; `purpose` names an independent series of numbers."""
        return self._draw(torch.rand, purpose, shape)

    def normal(self, purpose: str, *shape: int) -> torch.Tensor:
        """[B, *shape] standard normal, float32 on the CPU."""
        return self._draw(torch.randn, purpose, shape)

    def _draw(self, draw: Callable, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        seeds = [mix(self.seed, purpose, position) for position in self.positions]
        return torch.stack([draw(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
