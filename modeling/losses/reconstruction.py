"""Pixel losses and the proxy-code loss, computed in float32."""

from collections.abc import Callable

import torch
from torch.nn import functional as F


def l1(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of two equally shaped tensors, a scalar."""
    return F.l1_loss(reconstructions.float(), images.float())


def l2(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two equally shaped tensors, a scalar."""
    return F.mse_loss(reconstructions.float(), images.float())


def proxy_cross_entropy(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the codes of a 2-D tokenizer, TiTok's first stage (arXiv:2406.07550, section 3.3), a scalar.

    Logits are [B, K, h, w], codes int64 [B, h * w], row-major.
    """
    return F.cross_entropy(logits.float().flatten(2), codes)  # [B, K, h w]: classes second


RECONSTRUCTION_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"l1": l1, "l2": l2}
