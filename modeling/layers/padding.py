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
    """Pad images [B, C, H, W] in [0, 1] with `value` until `multiple` divides both sides.

    Returns the images and the margins, which `crop_margins` removes. Raises ValueError if `multiple` is below 1.
    """
    # As the published evaluation of Open-MAGVIT2 at original resolution, whose zeros in [-1, 1] are 0.5 in [0, 1].
    if multiple < 1:
        raise ValueError(f"multiple={multiple} must be at least 1")
    height, width = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    # Of an odd margin, the smaller half goes first.
    margins = Margins(height // 2, height - height // 2, width // 2, width - width // 2)
    if not any(margins):  # saves a copy
        return images, margins
    return F.pad(images, (margins.left, margins.right, margins.top, margins.bottom), value=value), margins


def crop_margins(images: torch.Tensor, margins: Margins) -> torch.Tensor:
    """Images [..., H, W] without their margins."""
    height, width = images.shape[-2:]
    return images[..., margins.top : height - margins.bottom, margins.left : width - margins.right]
