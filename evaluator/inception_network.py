"""The Inception-v3 of December 2015 whose features FID, sFID and the Inception Score are defined on.

Szegedy et al. 2016 (arXiv 1512.00567) with the three peculiarities of the published graph: average pools leave
padding out of the divisor, the last block pools with a maximum, and the classifier has 1008 outputs. The names of
the state dict are those of the conversion that all PyTorch tools share. torchvision's Inception is another network.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from evaluator.resize import resize_tf1

IMAGE_SIDE = 299
POOL_DIM, NUM_LOGITS = 2048, 1008
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17
SPATIAL_DIM = SPATIAL_SIDE * SPATIAL_SIDE * SPATIAL_CHANNELS
DIMS = {"pool": POOL_DIM, "logits": NUM_LOGITS, "spatial": SPATIAL_DIM}


class InceptionFeatures(NamedTuple):
    """What metrics need of a batch of B images."""

    pool: torch.Tensor  # [B, 2048], global average of the last block, at least 0: FID, KID
    logits: torch.Tensor  # [B, 1008], `pool @ fc.weight.T` *without* the bias: Inception Score
    spatial: torch.Tensor  # [B, 2023], first 7 channels of `Mixed_6d.branch1x1`, 17 x 17, channel last: sFID


class ConvUnit(nn.Module):
    """Convolution without bias, batch normalisation with running statistics, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu_()


def average_pool(x: torch.Tensor) -> torch.Tensor:
    """3 x 3 average, stride 1, same size; at the border over the pixels that exist."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35 blocks `Mixed_5b`, `5c`, `5d`: [B, in, 35, 35] -> [B, 224 + pool_channels, 35, 35]."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvUnit(in_channels, 64, 1)
        self.branch5x5_1 = ConvUnit(in_channels, 48, 1)
        self.branch5x5_2 = ConvUnit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvUnit(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, padding=1)
        self.branch_pool = ConvUnit(in_channels, pool_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(average_pool(x))], 1)


class BlockB(nn.Module):
    """`Mixed_6a`: [B, 288, 35, 35] -> [B, 768, 17, 17]."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = ConvUnit(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvUnit(288, 64, 1)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """17 x 17 blocks `Mixed_6b` to `6e`: [B, 768, 17, 17] -> the same; 7 x 7 kernels are 1 x 7 and 7 x 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide, tall = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = ConvUnit(768, 192, 1)
        self.branch7x7_1 = ConvUnit(768, channels, 1)
        self.branch7x7_2 = ConvUnit(channels, channels, **wide)
        self.branch7x7_3 = ConvUnit(channels, 192, **tall)
        self.branch7x7dbl_1 = ConvUnit(768, channels, 1)
        self.branch7x7dbl_2 = ConvUnit(channels, channels, **tall)
        self.branch7x7dbl_3 = ConvUnit(channels, channels, **wide)
        self.branch7x7dbl_4 = ConvUnit(channels, channels, **tall)
        self.branch7x7dbl_5 = ConvUnit(channels, 192, **wide)
        self.branch_pool = ConvUnit(768, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average_pool(x))], 1)


class BlockD(nn.Module):
    """`Mixed_7a`: [B, 768, 17, 17] -> [B, 1280, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvUnit(768, 192, 1)
        self.branch3x3_2 = ConvUnit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvUnit(768, 192, 1)
        self.branch7x7x3_2 = ConvUnit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvUnit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvUnit(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """8 x 8 blocks `Mixed_7b` (average pool) and `Mixed_7c` (max pool): [B, in, 8, 8] -> [B, 2048, 8, 8]."""

    def __init__(self, in_channels: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        wide, tall = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = ConvUnit(in_channels, 320, 1)
        self.branch3x3_1 = ConvUnit(in_channels, 384, 1)
        self.branch3x3_2a = ConvUnit(384, 384, **wide)
        self.branch3x3_2b = ConvUnit(384, 384, **tall)
        self.branch3x3dbl_1 = ConvUnit(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvUnit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvUnit(384, 384, **wide)
        self.branch3x3dbl_3b = ConvUnit(384, 384, **tall)
        self.branch_pool = ConvUnit(in_channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else average_pool(x)
        return torch.cat([*parts, self.branch_pool(pooled)], 1)


class InceptionV3(nn.Module):
    """The feature network as published, layer by layer; computes in the dtype of its parameters.

    Args:
        resize_dtype: of the resize to 299 pixels. float32 is TensorFlow's arithmetic to the last bit; some evaluators
            resize in float64, which changes features by 1e-7.
    """

    def __init__(self, *, resize_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.resize_dtype = resize_dtype
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB()
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, max_pool=False)
        self.Mixed_7c = BlockE(2048, max_pool=True)
        self.fc = nn.Linear(POOL_DIM, NUM_LOGITS)
        self.eval().requires_grad_(False)  # running statistics, always

    def stages(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Every intermediate result with its name, from `Conv2d_1a_3x3` to `AvgPool`, for uint8 images [B, 3, H, W]."""
        check_images(images)
        # Widened after it was normalised, as the tools do: the difference costs the last bit of float32.
        x = (resize_tf1(images, IMAGE_SIDE, dtype=self.resize_dtype) - 128) / 128
        x = x.to(self.fc.weight.dtype)
        for name, stage in self.named_children():
            if name != "fc":
                x = stage(x)
                yield name, x
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
                yield {"Conv2d_2b_3x3": "MaxPool_1"}.get(name, "MaxPool_2"), x
        yield "AvgPool", x.mean((2, 3))

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> InceptionFeatures:
        """Features of uint8 RGB images [B, 3, H, W] of any size, in the dtype of the parameters."""
        spatial = pool = None
        for name, x in self.stages(images):
            if name == "Mixed_6d":
                spatial = flatten_spatial(x)  # its first channels are those of `branch1x1`
            pool = x
        return InceptionFeatures(pool, F.linear(pool, self.fc.weight), spatial)


def flatten_spatial(x: torch.Tensor) -> torch.Tensor:
    """First seven channels of [B, C, 17, 17] -> [B, 2023]: row, column, channel, as stored statistics have them."""
    return x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).clone()


def check_images(images: torch.Tensor) -> None:
    """Raise ValueError unless `images` are uint8 [B, 3, H, W]: floats would be read as nearly black pictures."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        shape = list(images.shape)
        raise ValueError(f"images are {images.dtype} {shape}; the feature network expects uint8 [B, 3, H, W]")
