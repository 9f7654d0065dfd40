"""How well predicted features agree with a teacher's (VQ-KD, arXiv:2208.06366, equation 4)."""

import torch
from torch.nn import functional as F


def feature_cosine(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cosine at every place: both [B, F, h, w] -> [B, h, w], float32, in [-1, 1]; ValueError for unequal shapes."""
    if predictions.shape != targets.shape:
        raise ValueError(
            f"features of shape {tuple(predictions.shape)} were predicted, expected {tuple(targets.shape)}"
        )
    return F.cosine_similarity(predictions.float(), targets.float(), dim=1, eps=1e-8)


def feature_distillation_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cosine over all places, a scalar in [0, 2]; the length of features does not matter."""
    return 1 - feature_cosine(predictions, targets).mean()
