"""Images of any size for networks that halve them a few times."""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class Margins(NamedTuple):
    """Pixels that were added around an image."""

    top: int
    bottom: int
    left: int
    right: int


def pad_to_multiple(images: torch.Tensor, multiple: int, value: float = 0.5) -> tuple[torch.Tensor, Margins]:
    """Extend images [B, C, H, W] to the next multiples of a number; of an odd margin, the smaller half goes first.

    The published evaluation of Open-MAGVIT2 at original resolution pads like this, with zeros in [-1, 1].

    Args:
        images: in [0, 1].
        multiple: at least 1, what both sides are to be divisible by.
        value: of the new pixels; middle grey is zero in [-1, 1].

    Returns:
        The images, themselves if they fit, and the margins, which `crop_margins` removes.

    Raises:
        ValueError: `multiple` is less than 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple} must be at least 1")
    height, width = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    margins = Margins(height // 2, height - height // 2, width // 2, width - width // 2)
    if not any(margins):
        return images, margins
    return F.pad(images, (margins.left, margins.right, margins.top, margins.bottom), value=value), margins


def crop_margins(images: torch.Tensor, margins: Margins) -> torch.Tensor:
    """Images [..., H, W] without their margins."""
    height, width = images.shape[-2:]
    return images[..., margins.top : height - margins.bottom, margins.left : width - margins.right]
