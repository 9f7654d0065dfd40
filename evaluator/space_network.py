"""The networks of the feature spaces, through timm (all but Inception, which is no network of timm)."""

from collections import namedtuple
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.choices import FeaturePrecision
from evaluator.inception import FEATURE_PRECISIONS, warn_if_imitated
from evaluator.inception_fast import full_precision
from evaluator.inception_network import check_images
from evaluator.space_weights import find_space_weights
from evaluator.spaces import Space
from modeling.layers.half import HALF_PRECISIONS
from modeling.pretrained.teachers import build_network
from storage.weights import load_weights, weight_hash

HEADS = ("head.weight", "head.bias", "head.fc.*", "mask_token")  # entries of files that features do not need
# Vision transformers take other sides than their own: images are padded with zeros to whole patches, and position
# embeddings resized, bicubic with antialiasing.
FLEXIBLE = {"dynamic_img_size": True, "dynamic_img_pad": True}


class SpaceExtractor:
    """Images uint8 [B, 3, H, W] of any size to features [B, d] under the name of the space.

    Args:
        network: of timm, for `space`.
        precision: "float32"; "float64", resize and network; "bfloat16" and "float16" run the network under autocast
            (as the published references were made), which moves features by 3e-3 to 8e-3.
    """

    def __init__(
        self,
        space: Space,
        network: nn.Module,
        *,
        weights_hash: str,
        device: torch.device | str,
        precision: FeaturePrecision = "float32",
    ) -> None:
        self.space, self.weights_hash, self.precision = space, weights_hash, precision
        self.device = torch.device(device)
        self.approximate = precision in HALF_PRECISIONS
        self.dims = {space.features: int(network.num_features)}
        self.recipe = space.facts()
        self._dtype = torch.float64 if precision == "float64" else torch.float32
        self.network = network.to(self.device, self._dtype).eval().requires_grad_(False)
        self._named = namedtuple("SpaceFeatures", [space.features])

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> Any:
        """A named tuple of one tensor, float64 or else float32."""
        check_images(images)
        pixels = prepared(images.to(self.device), self.space, self._dtype)
        with self._computing():
            return self._named(_output(self.network, pixels, self.space).to(self._dtype))

    def _computing(self) -> AbstractContextManager:
        if self.approximate:
            return torch.autocast(self.device.type, FEATURE_PRECISIONS[self.precision])
        return full_precision(self.device)


def prepared(images: torch.Tensor, space: Space, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [B, 3, H, W] -> `dtype` [B, 3, side, side] as the network of the space expects them."""
    pixels, size = images.to(dtype) / 255, (space.side, space.side)
    if tuple(pixels.shape[2:]) != size:
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)  # may leave [0, 1]
    mean, std = (torch.tensor(c, dtype=dtype, device=pixels.device).view(3, 1, 1) for c in space.colours)
    return (pixels - mean) / std


def _output(network: nn.Module, pixels: torch.Tensor, space: Space) -> torch.Tensor:
    features = network.forward_features(pixels)
    if space.output == "spatial_mean":
        return features.mean((2, 3))
    if space.output == "class_token":
        return features[:, 0]
    return network.attn_pool(features)


def build_space_network(space: Space, **options: Any) -> nn.Module:
    """The network of a space with random weights; `options` are sizes of a smaller one, for `timm.create_model`."""
    flexible = {} if space.output == "spatial_mean" else FLEXIBLE  # convolutions take any size
    return build_network(space.model, pretrained=False, num_classes=0, **flexible, **options)


def load_space(
    space: Space,
    weights: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: FeaturePrecision = "float32",
    **options: Any,
) -> SpaceExtractor:
    """The extractor of a space with its trained weights.

    Args:
        weights: file under timm's names; None as `find_space_weights`.
        options: sizes of another network, for `timm.create_model`.

    Raises:
        ValueError: timm is not installed or too old; the precision is unknown.
        FileNotFoundError: the weights are not there and cannot be downloaded.
        CheckpointError: they are damaged or belong to another network.
    """
    if precision not in FEATURE_PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(FEATURE_PRECISIONS)}")
    warn_if_imitated(FEATURE_PRECISIONS[precision], torch.device(device))
    network = build_space_network(space, **options)
    load_weights(find_space_weights(space, weights), network, HEADS)
    return SpaceExtractor(
        space, network, weights_hash=weight_hash(network), device=device, precision=precision
    )
