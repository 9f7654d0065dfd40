"""The patch discriminator of image translation (arXiv:1611.07004) with which VQGANs are trained."""

import torch
from torch import nn

from modeling.layers.trainable import Trainable

SLOPE = 0.2
MAX_MULTIPLIER = 8


class PatchGAN(Trainable):
    """Strided 4x4 convolutions with batch normalisation; every logit judges one patch.

    Batch normalisation takes its statistics from whatever is in one call: images and reconstructions judged in one
    call share them.

    Args:
        image_channels: channels of the images.
        base_channels: width of the first layer; widths double up to eight times that.
        num_layers: number of halvings n; 3 judges patches of 70 x 70 pixels, 2 of 34 x 34.

    Raises:
        ValueError: for sizes below 1.
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
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[layer]),
                nn.LeakyReLU(SLOPE),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main.apply(_initialize)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, 1, h, w] of images [B, C, H, W], about [0, 1]; high means real; always in float32."""
        with torch.autocast(images.device.type, enabled=False):
            return self.main(2.0 * images.float() - 1.0)


def _initialize(module: nn.Module) -> None:
    """Normal weights: 0 +- 0.02 of convolutions, 1 +- 0.02 of normalisations."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
