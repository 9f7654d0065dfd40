"""Learned perceptual image patch similarity on VGG-16 features (arXiv:1801.03924)."""

from collections import OrderedDict

import torch
from torch import nn

# Convolutions of VGG-16 (arXiv:1409.1556, configuration D) before each of the five taps relu{1_2, 2_2, 3_3,
# 4_3, 5_3}.
SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
EPSILON = 1e-10  # as in the public release


class ScalingLayer(nn.Module):
    """(x - shift) / scale per colour, for images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 3, H, W]
        return (images - self.shift) / self.scale


class VGG16Features(nn.Module):
    """The five tapped feature maps; layers are named by their index in the usual flat VGG-16 (`slice2.5`, ...)."""

    def __init__(self) -> None:
        super().__init__()
        in_channels, index = 3, 0
        for number, widths in enumerate(SLICES, start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if number > 1:
                layers[str(index)] = nn.MaxPool2d(2)  # the pool opens its slice
                index += 1
            for width in widths:
                layers[str(index)] = nn.Conv2d(in_channels, width, 3, padding=1)
                layers[str(index + 1)] = nn.ReLU()
                in_channels, index = width, index + 2
            self.add_module(f"slice{number}", nn.Sequential(layers))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for part in self.children():
            x = part(x)
            maps.append(x)
        return maps  # 64, 128, 256, 512 and 512 channels, the side halving each time


class LinearHead(nn.Module):
    """Non-negative (as trained) weights over channels; index 0 of `model` was a dropout in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, channels, H, W] -> [B, 1, H, W]
        return self.model(x)


class LPIPS(nn.Module):
    """Perceptual distance of image pairs, with the state-dict names of the public releases; weights must be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = ScalingLayer()
        self.net = VGG16Features()
        for index, widths in enumerate(SLICES):
            self.add_module(f"lin{index}", LinearHead(widths[-1]))

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Distance [B, 1, 1, 1] of images [B, 3, H, W] in [0, 1], sides at least 16, and reconstructions."""
        with torch.no_grad():  # gradient flows to reconstructions only
            targets = self._features(images)
        total = reconstructions.new_zeros(())
        for index, (target, feature) in enumerate(zip(targets, self._features(reconstructions), strict=True)):
            head = self.get_submodule(f"lin{index}")
            total = total + head((target - feature).square()).mean(dim=(2, 3), keepdim=True)
        return total

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:  # Unit length
        maps = self.net(self.scaling_layer(2.0 * images - 1.0))  # the network sees [-1, 1]
        return [x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPSILON) for x in maps]


def torchvision_vgg16_name(name: str) -> str | None:
    """LPIPS name of an entry of torchvision's VGG-16 state dict; None for its unused classifier."""
    kind, _, rest = name.partition(".")
    if kind != "features":
        return None
    # Flat indices at which the slices end: every slice has its convolutions, as many ReLUs, and a pool but
    # the first.
    index, end = int(rest.split(".")[0]), 0
    for number, widths in enumerate(SLICES, start=1):
        end += 2 * len(widths) + (number > 1)
        if index < end:
            return f"net.slice{number}.{rest}"
    return None
