"""The patch discriminator of image translation (arXiv:1611.07004) with which VQGANs are trained."""

import torch
from torch import nn

from modeling.layers.trainable import Trainable

SLOPE = 0.2  # of leaky ReLUs below 0
MAX_MULTIPLIER = 8  # widths double up to eight times the first


class PatchGAN(Trainable):
    """Strided 4x4 convolutions with batch normalisation; every logit of [B, 1, h, w] judges one patch, high means real.

    Images [B, C, H, W] are about [0, 1]. Images and reconstructions judged in one call share batch statistics.
    `num_layers` is the number of halvings; 3 judges patches of 70 x 70 pixels, 2 of 34 x 34.
    """

    def __init__(self, *, image_channels: int = 3, base_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        if base_channels < 1 or num_layers < 1:
            raise ValueError(f"base_channels={base_channels} and num_layers={num_layers} must be at least 1")
        widths = [base_channels * min(2**layer, MAX_MULTIPLIER) for layer in range(num_layers + 1)]
        layers: list[nn.Module] = [
            nn.Conv2d(image_channels, widths[0], 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
        ]
        for layer in range(1, num_layers + 1):
            stride = 2 if layer < num_layers else 1  # the last layer keeps the side
            layers += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[layer]),
                nn.LeakyReLU(SLOPE),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main.apply(_initialize)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):  # always float32
            return self.main(2.0 * images.float() - 1.0)  # it sees [-1, 1]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)  # scales, 1 +- 0.02
        nn.init.zeros_(module.bias)
