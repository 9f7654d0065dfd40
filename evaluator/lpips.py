"""LPIPS as a measure: both published networks (arXiv:1801.03924, version 0.1), loaded from local files."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from modeling.losses.lpips import LPIPS, LinearHead, ScalingLayer
from modeling.losses.perceptual import load_frozen, lpips_entry

# Convolutions of the single-tower AlexNet (arXiv:1404.5997): channels, kernel, stride, padding, and whether a
# 3 x 3 max pool of stride 2 comes first. Each one's ReLU is tapped.
ALEXNET = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)
# The trunk of an AlexNet file is `features.0` ... `features.12`; the heads and full LPIPS files have other names.
ALEXNET_SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}


class AlexNetFeatures(nn.Module):
    """The five tapped feature maps; layers are named by their index in the usual flat AlexNet (`slice2.3`, ...)."""

    def __init__(self) -> None:
        super().__init__()
        in_channels, index = 3, 0
        for number, (width, kernel, stride, padding, pooled) in enumerate(ALEXNET, start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if pooled:
                layers[str(index)] = nn.MaxPool2d(3, stride=2)
                index += 1
            layers[str(index)] = nn.Conv2d(in_channels, width, kernel, stride=stride, padding=padding)
            layers[str(index + 1)] = nn.ReLU()
            in_channels, index = width, index + 2
            self.add_module(f"slice{number}", nn.Sequential(layers))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for part in self.children():
            x = part(x)
            maps.append(x)  # 64, 192, 384, 256 and 256 channels
        return maps


class AlexNetLPIPS(LPIPS):
    """LPIPS on AlexNet, with the state-dict names of the public releases; sides of at least 31 pixels."""

    def __init__(self) -> None:
        # Not the VGG-16 of the parent class, whose forward serves any five feature maps.
        nn.Module.__init__(self)
        self.scaling_layer = ScalingLayer()
        self.net = AlexNetFeatures()
        for index, (width, *_) in enumerate(ALEXNET):
            self.add_module(f"lin{index}", LinearHead(width))


def alexnet_entry(name: str) -> str | None:
    """Name inside `AlexNetLPIPS` of an entry of an LPIPS file, of its heads, or of torchvision's AlexNet."""
    kind, _, rest = name.partition(".")
    if kind == "classifier":
        return None  # left out
    return f"net.slice{ALEXNET_SLICES[int(rest.split('.')[0])]}.{rest}" if kind == "features" else name


def load_lpips(
    network: Literal["vgg", "alex"], paths: str | Sequence[str], *, device: torch.device | str = "cpu"
) -> LPIPS:
    """Frozen LPIPS in eval mode, with weights from local files.

    Args:
        network: "vgg" (the usual choice for tokenizers) or "alex".
        paths: one file with all entries, or the torchvision trunk and the linear heads.

    Raises:
        FileNotFoundError: naming a missing file.
        ValueError: for another network, or files that do not make up the module.
    """
    if network not in ("vgg", "alex"):
        raise ValueError(f"network={network!r} must be 'vgg' or 'alex'")
    module = LPIPS() if network == "vgg" else AlexNetLPIPS()
    load_frozen(module, paths, lpips_entry if network == "vgg" else alexnet_entry)
    return module.requires_grad_(False).eval().to(device)
