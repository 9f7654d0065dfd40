"""Discriminators for adversarial training of tokenizers."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from modeling.layers.conv import BlurDownsample, SameConv2d
from modeling.layers.trainable import Trainable

SLOPE = 0.1


class NLayerDiscriminator(Trainable):
    """Patch discriminator with blurred down-sampling; widths double from the second stage on.

    Args:
        image_channels: channels of the images.
        base_channels: width of the first stage.
        num_stages: number of halvings; stage i is base_channels * 2^i wide.
        pooled_size: side of the logit map, made by adaptive max pooling (a smaller map repeats entries);
            None keeps the map as it is, which suits small images.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(
        self,
        *,
        image_channels: int = 3,
        base_channels: int = 128,
        num_stages: int = 3,
        pooled_size: int | None = 16,
    ) -> None:
        super().__init__()
        if base_channels < 1 or num_stages < 1:
            raise ValueError(f"base_channels={base_channels} and num_stages={num_stages} must be at least 1")
        if pooled_size is not None and pooled_size < 1:
            raise ValueError(f"pooled_size={pooled_size} must be at least 1, or null for no pooling")
        self.pooled_size = pooled_size
        self.block_in = nn.Sequential(SameConv2d(image_channels, base_channels, 5), nn.LeakyReLU(SLOPE))
        stages = []
        in_channels = base_channels
        for stage in range(num_stages):
            out_channels = base_channels * 2**stage
            stages.append(
                nn.Sequential(
                    SameConv2d(in_channels, out_channels, 3),
                    BlurDownsample(),
                    nn.GroupNorm(math.gcd(32, out_channels), out_channels),  # 32 groups where they fit
                    nn.LeakyReLU(SLOPE),
                )
            )
            in_channels = out_channels
        self.blocks = nn.ModuleList(stages)
        self.to_logits = nn.Sequential(
            SameConv2d(in_channels, in_channels, 1), nn.LeakyReLU(SLOPE), SameConv2d(in_channels, 1, 5)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, 1, pooled_size, pooled_size] of images [B, C, H, W], about [0, 1]; high means real.

        Always in float32: the published recipes keep the adversarial loss out of mixed precision.
        """
        with torch.autocast(images.device.type, enabled=False):
            x = self.block_in(images.float())
            for block in self.blocks:
                x = block(x)
            if self.pooled_size is not None:
                x = F.adaptive_max_pool2d(x, self.pooled_size)
            return self.to_logits(x)
