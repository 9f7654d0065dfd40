"""Rotary positions (RoFormer, arXiv 2104.09864): queries and keys are rotated by angles that grow with their place.

Two conventions that must not be mixed, because trained weights depend on them:

    sequence_rotation   one angle per pair; number j is paired with number j + d/2 (halves), as in LLaMA's ports
    grid_rotation       rows turn the first half of the pairs, columns the second half; number 2j is paired with
                        number 2j + 1 (neighbours), as in LlamaGen (arXiv 2406.06525)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 10_000.0  # the slowest pair takes about this many places, times 2 pi, for a turn


@dataclass(frozen=True)
class Rotation:
    """Rotates pairs of numbers in heads."""

    cos: Tensor  # float32 [T, d/2], or [d/2] at a single place
    sin: Tensor
    neighbours: bool  # pairs are (2j, 2j + 1); otherwise (j, j + d/2)

    def at(self, place: int | slice) -> "Rotation":
        """The rotation of one or some places."""
        return Rotation(self.cos[place], self.sin[place], self.neighbours)

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., T, d]`, or `[..., d]` at a single place, to the same shape; float32 whatever the dtype of `x`."""
        pair = -1 if self.neighbours else -2
        first, second = x.float().unflatten(-1, (-1, 2) if self.neighbours else (2, -1)).unbind(pair)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return torch.stack(turned, dim=pair).flatten(-2)


def _angles(length: int, pairs: int, device: torch.device | str | None) -> Tensor:
    """Float32 `[length, pairs]`: angle of pair j at place p is `p * BASE ** (-j / pairs)`."""
    exponents = torch.arange(pairs, dtype=torch.float32, device=device) / pairs
    return torch.arange(length, dtype=torch.float32, device=device)[:, None] / BASE**exponents


def sequence_rotation(length: int, head_dim: int, device: torch.device | str | None = None) -> Rotation:
    """Rotation of the places `0 ... length - 1` of a sequence. Raises ValueError if `head_dim` is odd."""
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim} must be a multiple of 2 for 1-D rotary positions")
    angles = _angles(length, head_dim // 2, device)
    return Rotation(angles.cos(), angles.sin(), neighbours=False)


def grid_rotation(
    side: int,
    head_dim: int,
    prefix: int = 0,
    device: torch.device | str | None = None,
    prefix_cos: float = 0.0,
) -> Rotation:
    """Rotation of the places of a `side` x `side` grid in raster order, after `prefix` places outside of it.

    In the prefix the sine is 0. `prefix_cos` 1 keeps queries and keys; 0 makes them the zero vector, as in LlamaGen and
    Open-MAGVIT2. Raises ValueError if `head_dim` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim={head_dim} must be a multiple of 4 for 2-D rotary positions")
    angles = _angles(side, head_dim // 4, device)
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # [side * side, d/2]
    outside = both.new_zeros(prefix, head_dim // 2)
    cos = torch.cat([outside + prefix_cos, both.cos()])
    return Rotation(cos, torch.cat([outside, both.sin()]), neighbours=True)


def class_rotation(
    length: int, head_dim: int, *, rope: str, zero: bool, device: torch.device | str
) -> Rotation:
    """Rotation of a class and the `length` tokens after it, `length + 1` places.

    Args:
        rope: "2d": tokens are a square grid; "1d": a row whose place 0 is the class.
        zero: query and key of the class vanish, so every place attends to it with logit 0; else they are not rotated.

    Raises:
        ValueError: `rope` is unknown, the tokens are not a square, or `head_dim` does not fit.
    """
    if rope == "1d":
        rotation = sequence_rotation(length + 1, head_dim, device)
        # Only the cosine: the sine at place 0 is 0 anyway.
        keep = torch.arange(length + 1, device=device)[:, None] >= int(zero)
        return Rotation(rotation.cos * keep, rotation.sin, neighbours=False)
    if rope != "2d":
        raise ValueError(f"rope={rope!r} is unknown; choose 2d, 1d")
    side = math.isqrt(length)
    if side**2 != length:
        raise ValueError(f"num_tokens={length} is not a square grid; expected n * n tokens, or rope=1d")
    return grid_rotation(side, head_dim, prefix=1, device=device, prefix_cos=0.0 if zero else 1.0)
