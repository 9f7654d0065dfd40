"""Convolutions with TensorFlow-style SAME padding, blur down-sampling, images to patches and back."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def same_padding(size: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after an axis of length `size` that make the output ceil(size / stride) long."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)  # -(-a // b): ceil
    return total // 2, total - total // 2  # an odd one goes last, as in TensorFlow


def conv2d_same(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: int = 1, groups: int = 1
) -> torch.Tensor:
    """Convolve x [B, C, H, W] with SAME padding to [B, C', ceil(H / stride), ceil(W / stride)]."""
    top, bottom = same_padding(x.shape[-2], weight.shape[-2], stride)
    left, right = same_padding(x.shape[-1], weight.shape[-1], stride)
    if (top, left) == (bottom, right):  # symmetric: the convolution pads by itself, without a copy
        return F.conv2d(x, weight, bias, stride, (top, left), groups=groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, groups=groups)


class SameConv2d(nn.Conv2d):
    """`nn.Conv2d` with a square kernel, stride 1 and SAME padding."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv2d_same(x, self.weight, self.bias)


class BlurDownsample(nn.Module):
    """Anti-aliased halving (arXiv:1904.11486) with SAME padding.

    A depthwise convolution with outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64 and stride 2.
    """

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        # [1, 1, 4, 4], persistent: released discriminators hold it.
        self.register_buffer("kernel", (torch.outer(taps, taps) / taps.sum() ** 2)[None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]."""
        channels = x.shape[1]  # groups = channels: every channel is blurred alone
        return conv2d_same(x, self.kernel.expand(channels, 1, -1, -1), stride=2, groups=channels)


def space_to_depth(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut images into row-major patches: [B, C, H, W] -> [B, (H / p) (W / p), C * p * p].

    A patch is laid out like one filter of a convolution weight [D, C, p, p]: colour, row, column.
    """
    batch, channels, height, width = images.shape
    x = images.view(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch_size**2)


def depth_to_space(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Join row-major patches of a square image: [B, g * g, p * p * C] -> [B, C, g * p, g * p].

    A patch is laid out as in `blocks_to_space`: out[b, c, i*p + r, j*p + s] = patches[b, i*g + j, (r*p + s)*C + c].
    """
    grid = math.isqrt(patches.shape[1])
    return blocks_to_space(patches.transpose(1, 2).unflatten(2, (grid, grid)), patch_size)


def blocks_to_space(features: torch.Tensor, block_size: int) -> torch.Tensor:
    """Turn channels into pixels: [B, p * p * C, H, W] -> [B, C, H * p, W * p].

    The channels of a position are row, column, colour, with the colour fastest (neither as in `space_to_depth` nor as
    in `F.pixel_shuffle`): out[b, c, i*p + r, j*p + s] = features[b, (r*p + s)*C + c, i, j].
    """
    batch, channels, height, width = features.shape
    p, colours = block_size, channels // block_size**2
    x = features.reshape(batch, p, p, colours, height, width)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, colours, height * p, width * p)
