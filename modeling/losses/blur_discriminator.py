"""The patch discriminator of MaskBit (arXiv:2409.16211), with which Open-MAGVIT2 trains a small codebook."""

from typing import Literal

import torch
from torch import nn

from modeling.losses.discriminators import NLayerDiscriminator

TAPS = {3: (1.0, 2.0, 1.0), 4: (1.0, 3.0, 3.0, 1.0), 5: (1.0, 4.0, 6.0, 4.0, 1.0)}


class BlurDiscriminator(NLayerDiscriminator):
    """Convolutions, each halved by a fixed blur (arXiv:1904.11486); every logit judges a patch, none are pooled.

    State-dict names are those of the released discriminators. It differs from `nlayer` in what it sees, images in
    [-1, 1], and in keeping the map of logits as it is. Parameters start at PyTorch's defaults. `reduction` "blur"
    halves with SAME padding, to ceil(n / 2); "average" takes 2 x 2 means, floor(n / 2).
    """

    def __init__(
        self,
        *,
        image_channels: int = 3,
        base_channels: int = 128,  # stage i is base_channels * 2^i wide
        num_stages: int = 3,  # halvings
        reduction: Literal["blur", "average"] = "blur",
        kernel_size: int = 4,  # taps of the blur: 3, 4 or 5
    ) -> None:
        super().__init__(
            image_channels=image_channels,
            base_channels=base_channels,
            num_stages=num_stages,
            pooled_size=None,
        )
        if reduction not in ("blur", "average"):
            raise ValueError(f"reduction={reduction!r} is unknown; choose blur or average")
        if kernel_size not in TAPS:
            raise ValueError(f"kernel_size={kernel_size} must be one of {list(TAPS)}")
        for stage in self.blocks:
            if reduction == "average":  # stage[1] is the blurred halving
                stage[1] = nn.AvgPool2d(2)
            else:
                taps = torch.tensor(TAPS[kernel_size])
                stage[1].kernel = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(2.0 * images.float() - 1.0)  # logits [B, 1, h, w]
