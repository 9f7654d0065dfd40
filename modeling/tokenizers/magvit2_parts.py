"""Convolutional encoder and decoder of Open-MAGVIT2 (arXiv:2409.04410), with the names of its released weights.

GroupNorm has 32 groups and eps 1e-6. Levels are stored fine to coarse in both halves. Initial values are torch's.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from modeling.layers.conv import blocks_to_space
from modeling.layers.half import as_weights
from modeling.layers.trainable import CompileUnit
from modeling.tokenizers.vqgan_parts import check_widths, group_norm

STYLE_EPS = 1e-6  # added to the variance


class ResBlock(CompileUnit):
    """x + conv(silu(norm(conv(silu(norm(x)))))) without biases, with a 1x1 convolution of x where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.norm2 = group_norm(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, in_channels, H, W] -> [B, out_channels, H, W]
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Upsample(nn.Module):
    """Doubling by a 3x3 convolution to four times the channels, which become blocks of 2 x 2 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, 2H, 2W]
        return blocks_to_space(self.conv1(x), 2)


class AdaptiveGroupNorm(CompileUnit):
    """Group normalisation whose scale and shift come from the codes of the whole image (arXiv:2310.05737).

    Per channel of the codes, the scale is a linear map of the standard deviation over all positions, the shift one of
    the mean. `channels` is a multiple of 32. The variance of a single position is 0 (NaN in the authors' code).
    """

    def __init__(self, channels: int, code_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6, affine=False)
        self.gamma = nn.Linear(code_dim, channels)
        self.beta = nn.Linear(code_dim, channels)

    def forward(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:  # codes: any side
        style = codes.float().flatten(2)  # [B, code_dim, positions]
        positions = style.shape[2]
        variance = style.var(dim=2, correction=1 if positions > 1 else 0)  # 0, not NaN, for one position
        scale = self.gamma(as_weights((variance + STYLE_EPS).sqrt(), self))  # [B, channels]
        shift = self.beta(as_weights(style.mean(dim=2), self))
        return scale[..., None, None] * self.norm(x) + shift[..., None, None]


class Level(CompileUnit):
    """Residual blocks of one resolution, then a change of resolution."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, resample: str | None) -> None:
        super().__init__()
        self.block = _blocks(in_channels, out_channels, num_blocks)
        halves, doubles = resample == "down", resample == "up"
        self.downsample = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if halves else None
        self.upsample = Upsample(out_channels) if doubles else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W], or half or twice the sides
        x = self.block(x)
        if self.downsample is not None:
            return self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class MAGVIT2Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> [B, z_channels, H / f, W / f], f = 2^(levels - 1).

    Keywords as `VQGANEncoder`; `num_blocks` residual blocks also follow the coarsest level.
    """

    def __init__(
        self, *, base_channels: int, multipliers: Sequence[int], num_blocks: int, z_channels: int
    ) -> None:
        super().__init__()
        check_widths(base_channels, multipliers, num_blocks, ())
        widths, last = [base_channels * m for m in (1, *multipliers)], len(multipliers) - 1
        self.conv_in = nn.Conv2d(3, base_channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], num_blocks, "down" if i < last else None)
            for i in range(len(multipliers))
        )
        self.mid_block = _blocks(widths[-1], widths[-1], num_blocks)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # Features before the bottleneck
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class MAGVIT2Decoder(nn.Module):
    """Codes [B, z_channels, h, w] -> images [B, 3, f h, f w], about [-1, 1] and not clamped.

    Every level begins with an `AdaptiveGroupNorm` by the codes. Arguments as `MAGVIT2Encoder`.
    """

    def __init__(
        self, *, base_channels: int, multipliers: Sequence[int], num_blocks: int, z_channels: int
    ) -> None:
        super().__init__()
        check_widths(base_channels, multipliers, num_blocks, ())
        widths = [base_channels * m for m in multipliers]
        inputs = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid_block = _blocks(widths[-1], widths[-1], num_blocks)
        self.up = nn.ModuleList(
            Level(inputs[i], widths[i], num_blocks, "up" if i else None) for i in range(len(multipliers))
        )
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(width, z_channels) for width in inputs)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:  # Images of codes
        x = self.mid_block(self.conv_in(codes))
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(norm(x, codes))
        return self.conv_out(F.silu(self.norm_out(x)))


def _blocks(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    """Residual blocks, the first of which changes the width."""
    return nn.Sequential(*(ResBlock(out_channels if i else in_channels, out_channels) for i in range(count)))
