"""ConvNeXt-S image classifier (arXiv:2201.03545) with torchvision's names, for the perceptual loss."""

import torch
from torch import nn
from torch.nn import functional as F

DEPTHS = (3, 3, 27, 3)
WIDTHS = (96, 192, 384, 768)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INPUT_SIZE = 224


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W], eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, H, W]
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MoveAxis(nn.Module):
    """`torch.movedim` as a layer; it keeps the released numbering inside a block."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # Move axis `source` to `target`
        return x.movedim(self.source, self.target)


class ConvNeXtBlock(nn.Module):
    """x + scale * MLP(LN(depthwise 7x7 convolution of x)); without stochastic depth, a training device."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            MoveAxis(1, -1),  # channels last, for LayerNorm and MLP
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            MoveAxis(-1, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, C, H, W]
        return x + self.layer_scale * self.block(x)


class ConvNeXtSmall(nn.Module):
    """Images to 1000 ImageNet logits. Weights are not trained here and must be loaded."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, stride=4), ChannelNorm(WIDTHS[0]))
        ]
        for index, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            if index:
                before = WIDTHS[index - 1]
                layers.append(nn.Sequential(ChannelNorm(before), nn.Conv2d(before, width, 2, stride=2)))
            layers.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth))))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(ChannelNorm(WIDTHS[-1]), nn.Flatten(1), nn.Linear(WIDTHS[-1], 1000))

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # Normalised images [B, 3, H, W]
        return self.classifier(self.features(images).mean(dim=(2, 3), keepdim=True))  # [B, 1000]


class ConvNeXtDistance(nn.Module):
    """Mean squared difference of ConvNeXt-S logits, a scalar; the perceptual term of TiTok's second stage."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ConvNeXtSmall()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # images [B, 3, H, W] in [0, 1] receive no gradient
            target = self._logits(images)
        return F.mse_loss(self._logits(reconstructions), target)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        size = (INPUT_SIZE, INPUT_SIZE)
        images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return self.net((images - self.mean) / self.std)  # [B, 1000]
