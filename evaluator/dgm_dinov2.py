"""Features for FD-DINOv2 as dgm-eval computes it: the class token of DINOv2 ViT-L/14 (arXiv:2306.04675).

The space `dinov2` (`evaluator.spaces`) has the same weights and other pixels, and its numbers are others. Images are
resized to 224 x 224, bicubic with antialiasing and without keeping their aspect ratio, and normalised by ImageNet's
mean and deviation. The published network was trained at 518 pixels; its position embeddings are interpolated to
16 x 16 patches the way its authors do, by a factor of (16 + 0.1) / 37 (arXiv:2304.07193).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from evaluator.space_weights import find_space_weights
from evaluator.spaces import IMAGENET, SPACES
from modeling.pretrained.teachers import build_network
from storage.weights import read_weights, weight_hash

MODEL, SIDE, PATCH = SPACES["dinov2"].model, 224, 14


class DinoFeatures(NamedTuple):
    """Class token after the last norm."""

    dinov2_dgm: torch.Tensor  # float32 [B, d], d = 1024 for the published network


class DinoExtractor:
    """Images uint8 [B, 3, H, W] to `DinoFeatures`.

    `model` maps normalised images float32 [B, 3, side, side] to [B, dim].
    """

    approximate = False

    def __init__(
        self, model: nn.Module, *, dim: int, weights_hash: str, device: torch.device | str, side: int = SIDE
    ) -> None:
        self.model, self.side, self.device = model.to(device).eval().requires_grad_(False), side, device
        self.weights_hash, self.dims = weights_hash, {"dinov2_dgm": dim}
        self._mean, self._std = (torch.tensor(colour, device=device).view(3, 1, 1) for colour in IMAGENET)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> DinoFeatures:
        pixels = resize(images.to(self.device), self.side)
        with torch.autocast(torch.device(self.device).type, enabled=False):
            return DinoFeatures(self.model((pixels - self._mean) / self._std).float())


def resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, side, side] in [0, 1], bicubic, antialiased."""
    pixels = images.float()
    # Rows first and rounded to 8 bit after either axis, as Pillow does, through which the published numbers went.
    for shape in ((images.shape[2], side), (side, side)):
        if tuple(pixels.shape[2:]) != shape:
            pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True).round().clamp(0, 255)
    return pixels / 255


def resize_positions(embedding: torch.Tensor, patches: int) -> torch.Tensor:
    """Position embeddings [1, 1 + n * n, d] of a square grid -> [1, 1 + patches * patches, d]."""
    own, dim = embedding.shape[1] - 1, embedding.shape[2]
    old = round(own**0.5)
    if old * old != own:
        raise ValueError(f"{own} position embeddings are no square grid")
    if old == patches:
        return embedding
    # The class token, which comes first, has no place.
    grid = embedding[:, 1:].reshape(1, old, old, dim).permute(0, 3, 1, 2).float()
    # The 0.1 is part of how the network was published; the resulting size is rounded down to `patches`.
    grid = F.interpolate(grid, scale_factor=(patches + 0.1) / old, mode="bicubic", antialias=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, patches * patches, dim)
    return torch.cat([embedding[:, :1], grid.to(embedding.dtype)], dim=1)


def find_dino_weights(path: str | Path | None = None) -> Path:
    """The weight file, which is that of the space `dinov2`; see `find_space_weights`."""
    return find_space_weights(SPACES["dinov2"], path)


def load_dino(
    weights: str | Path | None = None,
    *,
    device: torch.device | str,
    model: str = MODEL,
    side: int = SIDE,
    **options: int,
) -> DinoExtractor:
    """DINOv2 through timm.

    Args:
        weights: local file, in timm's names or those of the original release; None as `find_dino_weights`.
        side: of its images, a multiple of 14.
        options: sizes of another network, for `timm.create_model`.

    Raises:
        ValueError: timm is not installed, or the file holds another network.
        FileNotFoundError: the file does not exist, or cannot be downloaded.
    """
    network = build_network(model, pretrained=False, img_size=side, num_classes=0, **options)
    weights = find_dino_weights(weights)
    state: Mapping[str, torch.Tensor] = read_weights(weights)
    state = {name: value for name, value in state.items() if name != "mask_token"}  # for training alone
    if "pos_embed" in state:
        state["pos_embed"] = resize_positions(state["pos_embed"], side // PATCH)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not hold the weights of {model}: {error}") from error
    return DinoExtractor(
        network, dim=network.num_features, weights_hash=weight_hash(network), device=device, side=side
    )
