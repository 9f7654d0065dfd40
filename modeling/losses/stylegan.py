"""A discriminator after StyleGAN2 (arXiv:1912.04958) in plain PyTorch, as LlamaGen (arXiv:2406.06525) trains with."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from modeling.layers.trainable import Trainable

SLOPE = 0.2  # of leaky ReLUs below 0
WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


class Blur(nn.Module):
    """Depthwise 3x3 filter outer([1, 2, 1], [1, 2, 1]) / 16 with mirrored borders; the taps are a buffer `f` [3]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> the same shape
        channels = x.shape[1]
        kernel = torch.outer(self.f, self.f) / self.f.sum().square()  # sums to 1
        return F.conv2d(
            F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel.expand(channels, 1, 3, 3), groups=channels
        )


class ResidualHalving(nn.Module):
    """Two convolutions and a blurred, strided third, beside a strided 1x1 convolution; the sum over sqrt 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_res = nn.Conv2d(in_channels, out_channels, 1, stride=2)
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
        )
        self.downsample = nn.Sequential(Blur(), nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, in, H, W] -> [B, out, H / 2, W / 2]
        return (self.downsample(self.net(x)) + self.conv_res(x)) / math.sqrt(2.0)  # keeps the variance


class StyleGANDiscriminator(Trainable):
    """Residual halvings down to 4 x 4, then one logit for the whole image.

    `forward` gives logits [B, 1] of images [B, 3, S, S], about [0, 1], with S a power of two from 8 to 1024; high means
    real. Images of another size raise ValueError.
    """

    def __init__(self, *, image_size: int = 256, channel_multiplier: int = 1) -> None:
        super().__init__()
        if image_size not in WIDTHS or image_size < 8:
            raise ValueError(f"image_size={image_size} must be one of {list(WIDTHS)[1:]}")
        if channel_multiplier < 1:
            raise ValueError(f"channel_multiplier={channel_multiplier} must be at least 1")
        widths = {size: width * (channel_multiplier if size > 32 else 1) for size, width in WIDTHS.items()}
        self.image_size = image_size
        blocks: list[nn.Module] = [
            nn.Conv2d(3, widths[image_size], 3, padding=1),
            nn.LeakyReLU(SLOPE),
        ]
        size = image_size
        while size > 4:
            blocks.append(ResidualHalving(widths[size], widths[size // 2]))
            size //= 2
        self.blocks = nn.ModuleList(blocks)
        self.final_conv = nn.Sequential(nn.Conv2d(widths[4], widths[4], 3, padding=1), nn.LeakyReLU(SLOPE))
        self.final_linear = nn.Sequential(
            nn.Linear(widths[4] * 16, widths[4]), nn.LeakyReLU(SLOPE), nn.Linear(widths[4], 1)
        )

    def features(self, images: torch.Tensor) -> torch.Tensor:  # [B, 512, 4, 4]
        size = self.image_size
        if images.shape[-2:] != (size, size):
            raise ValueError(
                f"images are {images.shape[-2]} x {images.shape[-1]}, this discriminator needs {size} x {size}"
            )
        x = 2.0 * images.float() - 1.0  # it sees [-1, 1]
        for block in self.blocks:
            x = block(x)
        return self.final_conv(x)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):  # always float32
            return self.final_linear(self.features(images).flatten(1))
