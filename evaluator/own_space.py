"""A space of features that needs no download: the encoder of the tokenizer `openmoji-titok` of this repository.

Its distances are no FID and compare with no published number. They rank sets of images that were measured against the
same reference at the same number, by coarse shapes and colours: the network is small, sees 48 x 48 pixels and has
learnt to reconstruct emoji. It knows no objects. A model that was trained with this tokenizer was trained on the space.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from evaluator.inception_network import check_images
from modeling.pipeline import load_tokenizer
from storage.weights import weight_hash

OWN_SPACE = "titok_openmoji"  # name of the network, and of its kind of features
_MODEL = "openmoji-titok"


class OwnFeatures(NamedTuple):
    """The last hidden states of the encoder, averaged over its latent tokens."""

    titok_openmoji: torch.Tensor  # float32 [B, 128]


class OwnExtractor:
    """Images uint8 [B, 3, H, W] of any size to `OwnFeatures`; resized without keeping their aspect ratio."""

    approximate = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._tokenizer = load_tokenizer(_MODEL, device).eval().requires_grad_(False)
        self._encoder = self._tokenizer.encoder
        self.weights_hash = weight_hash(self._tokenizer)
        self.dims: Mapping[str, int] = {OWN_SPACE: self._encoder.ln_post.normalized_shape[0]}
        self.recipe = {"model": _MODEL, "side": self._tokenizer.image_size, "output": "mean of latent tokens"}

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> OwnFeatures:
        check_images(images)
        pixels, size = images.to(self.device).float() / 255, (self._tokenizer.image_size,) * 2
        if tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        states: list[torch.Tensor] = []  # [B, N, 128]
        hook = self._encoder.ln_post.register_forward_hook(lambda *call: states.append(call[2]))
        try:
            self._tokenizer.encode_latents(pixels)
        finally:
            hook.remove()
        return OwnFeatures(states[0].mean(dim=1).float())


def load_own_space(weights: Any = None, *, device: torch.device | str = "cpu") -> OwnExtractor:
    """The extractor; `weights` are those in the repository, whatever is given."""
    return OwnExtractor(device)
