"""Discriminators for adversarial training of tokenizers."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from modeling.layers.conv import BlurDownsample, SameConv2d
from modeling.layers.trainable import Trainable

SLOPE = 0.1  # of leaky ReLUs below 0


class NLayerDiscriminator(Trainable):
    """Patch discriminator with blurred down-sampling; widths double from the second stage on.

    `forward` judges images [B, C, H, W], about [0, 1]: high logits [B, 1, pooled_size, pooled_size] mean real.
    `pooled_size` is the side made by adaptive max pooling (a smaller map repeats entries); None keeps the map, which
    suits small images.
    """

    def __init__(
        self,
        *,
        image_channels: int = 3,
        base_channels: int = 128,  # width of the first stage
        num_stages: int = 3,  # halvings; stage i is base_channels * 2^i wide
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
        with torch.autocast(images.device.type, enabled=False):  # published recipes: no mixed precision
            x = self.block_in(images.float())
            for block in self.blocks:
                x = block(x)
            if self.pooled_size is not None:
                x = F.adaptive_max_pool2d(x, self.pooled_size)
            return self.to_logits(x)
