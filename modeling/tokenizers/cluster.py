"""Cluster (arXiv:2411.04406): a frozen feature network is the encoder, its clustered features are the codes."""

import torch
from torch import nn

from modeling.quantizers.base import Quantizer
from modeling.tokenizers.feature_tokenizer import FeatureTokenizer


class Cluster(FeatureTokenizer):
    """Tokens are the nearest centroids of a teacher's features; without a pixel decoder they decode to centroids.

    The weights of the frozen teacher are part of the state dict, so that a saved tokenizer is complete. The teacher
    maps images in [0, 1], which it resizes for itself, to features [B, C, h, w], and has attributes `width` (C) and
    `grid` (h).
    """

    parts = ("quantizer", "teacher", "pixel_decoder")
    learns = "codebook"

    def __init__(
        self,
        *,
        teacher: nn.Module,
        quantizer: Quantizer,  # C channels; scripts/fit_codebook.py finds the centroids
        pixel_decoder: nn.Module | None = None,  # [B, C, h, w] -> [B, 3, f h, f w] in [0, 1]
        image_size: int = 256,
    ) -> None:
        super().__init__(image_size=image_size, grid=teacher.grid)
        if quantizer.latent_channels != teacher.width:
            raise ValueError(
                f"quantizer.code_dim={quantizer.code_dim} must be the width of the teacher's features,"
                f" {teacher.width}"
            )
        self.teacher = teacher.requires_grad_(False).eval()
        self.quantize = quantizer
        self.feature_channels = quantizer.code_dim
        self._attach(pixel_decoder)

    def train(self, mode: bool = True) -> "Cluster":
        super().train(mode)
        self.teacher.eval()  # frozen: no dropout, no moving statistics
        return self

    def copy_teacher(self, teacher: nn.Module) -> None:
        self.teacher.load_state_dict(teacher.state_dict())  # the teacher is the encoder

    @torch.no_grad()
    def encode_latents(self, images: torch.Tensor) -> torch.Tensor:
        self.check_images(images)  # the teacher would squeeze any shape into its square
        return self.teacher(images)  # [B, C, h, w]

    def decode_features(self, quantized: torch.Tensor) -> torch.Tensor:  # The centroids themselves
        return quantized
