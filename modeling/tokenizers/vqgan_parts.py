"""Convolutional encoder and decoder of the taming VQGAN (arXiv:2012.09841), with the names of its released weights.

GroupNorm has 32 groups and eps 1e-6. Levels are stored fine to coarse in both halves. Inputs and outputs of the two
halves are images in [-1, 1]; `PixelDecoder` and the tokenizer convert.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from modeling.layers.trainable import CompileUnit


def group_norm(channels: int) -> nn.GroupNorm:
    """The normalisation of every block: 32 groups, eps 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution of x where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, in_channels, H, W] -> [B, out_channels, H, W]
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class SpatialAttention(nn.Module):
    """Residual self-attention of all positions with a single head as wide as the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> the same shape
        hidden = self.norm(x)
        rows = [part(hidden).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v)]
        mixed = F.scaled_dot_product_attention(*rows)  # [B, 1, H W, C]
        return x + self.proj_out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halving by a strided 3x3 convolution; zeros are added at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, H / 2, W / 2] for even sides
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom, as released


class Upsample(nn.Module):
    """Doubling by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, 2H, 2W]
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(CompileUnit):
    """Residual blocks of one resolution, each followed by attention where wanted, then a change of resolution."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, attention: bool, resample: str | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(out_channels if index else in_channels, out_channels) for index in range(num_blocks)
        )
        self.attn = nn.ModuleList(SpatialAttention(out_channels) for _ in range(num_blocks * attention))
        self.downsample = Downsample(out_channels) if resample == "down" else None
        self.upsample = Upsample(out_channels) if resample == "up" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W], or half or twice the sides
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)  # after every block of a level with attention
        if self.downsample is not None:
            return self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(CompileUnit):
    """Two residual blocks around attention, at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> the same shape
        return self.block_2(self.attn_1(self.block_1(x)))


class VQGANEncoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> [B, z_channels, H / f, W / f], f = 2^(levels - 1).

    `base_channels` is the width of the stem, a multiple of 32, `multipliers` the widths of the levels relative to it,
    fine to coarse, as are the indices `attention_levels`; `middle` adds blocks with attention at the coarsest level.
    """

    def __init__(
        self,
        *,
        base_channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention_levels: Sequence[int],
        middle: bool,
        z_channels: int,
    ) -> None:
        super().__init__()
        check_widths(base_channels, multipliers, num_blocks, attention_levels)
        widths, last = [base_channels * m for m in (1, *multipliers)], len(multipliers) - 1
        self.conv_in = nn.Conv2d(3, base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], num_blocks, i in attention_levels, "down" if i < last else None)
            for i in range(len(multipliers))
        )
        self.mid = Middle(widths[-1]) if middle else nn.Identity()
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # Features before the bottleneck
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class VQGANDecoder(nn.Module):
    """[B, z_channels, h, w] -> images [B, 3, f h, f w], about [-1, 1] and not clamped; arguments as `VQGANEncoder`."""

    def __init__(
        self,
        *,
        base_channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention_levels: Sequence[int],
        middle: bool,
        z_channels: int,
    ) -> None:
        super().__init__()
        check_widths(base_channels, multipliers, num_blocks, attention_levels)
        widths = [base_channels * m for m in multipliers]
        inputs = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1]) if middle else nn.Identity()
        self.up = nn.ModuleList(
            Level(inputs[i], widths[i], num_blocks, i in attention_levels, "up" if i else None)
            for i in range(len(multipliers))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:  # Images of features
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class PixelDecoder(nn.Module):
    """Images of any tokenizer's codes: a 1x1 convolution to the width of the decoder, and a `VQGANDecoder`.

    Keywords as `VQGANEncoder`.
    """

    def __init__(
        self,
        *,
        in_channels: int,  # of the codes
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 3,
        attention_levels: Sequence[int] | None = None,  # None: the coarsest
        middle: bool = True,
        z_channels: int = 256,
    ) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(in_channels, z_channels, 1)
        self.decoder = VQGANDecoder(
            base_channels=base_channels,
            multipliers=multipliers,
            num_blocks=num_blocks,
            attention_levels=coarsest(multipliers) if attention_levels is None else attention_levels,
            middle=middle,
            z_channels=z_channels,
        )
        self.upscale = 2 ** (len(multipliers) - 1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return (self.decoder(self.post_quant_conv(codes)) + 1.0) / 2.0  # [B, 3, f h, f w], about [0, 1]


def coarsest(multipliers: Sequence[int]) -> tuple[int, ...]:
    """The default of `attention_levels`: the last level."""
    return (len(multipliers) - 1,)


def connector(in_channels: int, widths: Sequence[int] | None, out_channels: int) -> nn.Module:
    """1x1 convolutions in_channels -> widths -> out_channels; None is none at all, ValueError for unequal ends."""
    if widths is None:
        if in_channels != out_channels:
            raise ValueError(
                f"connector_widths=null needs equal channels on both sides of the quantizer's border, got"
                f" {in_channels} and {out_channels}"
            )
        return nn.Identity()
    chain = [in_channels, *widths, out_channels]
    parts = [nn.Conv2d(a, b, 1) for a, b in zip(chain, chain[1:], strict=False)]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def check_widths(
    base_channels: int, multipliers: Sequence[int], num_blocks: int, attention_levels: Sequence[int]
) -> None:
    """Raise ValueError for sizes that no network has."""
    if base_channels < 32 or base_channels % 32:
        raise ValueError(f"base_channels={base_channels} must be a multiple of 32 (group normalisation)")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers={list(multipliers)} must be at least one level, each at least 1")
    if num_blocks < 1:
        raise ValueError(f"num_blocks={num_blocks} must be at least 1")
    if any(not 0 <= level < len(multipliers) for level in attention_levels):
        raise ValueError(
            f"attention_levels={list(attention_levels)} must lie in 0 ... {len(multipliers) - 1} (fine to coarse)"
        )
