"""Networks that measure, as far as their weights are on this machine already."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.console import warn
from evaluator.inception import load_inception
from evaluator.inception_weights import ENVIRONMENT, FILE_NAMES, find_inception_weights
from evaluator.lpips import load_lpips


@dataclass
class LocalNetworks:
    """Networks that measure, where their weights are on this machine."""

    inception: Any | None
    lpips: nn.Module | None

    @classmethod
    def load(
        cls, inception_weights: str | None, lpips_weights: Sequence[str] | None, device: torch.device
    ) -> "LocalNetworks":
        """Those whose files are named or cached; nothing is downloaded.

        Args:
            inception_weights: file; None looks at $INCEPTION_WEIGHTS and into torch's hub folder.
            lpips_weights: VGG-16 trunk and linear heads, or one file with both; None is no LPIPS.
            device: where they compute.

        Raises:
            FileNotFoundError, ValueError: a file that is named does not exist or does not fit.
        """
        path: str | Path | None = inception_weights or os.environ.get(ENVIRONMENT)
        if path is None:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            path = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
        inception = None
        if path is None:
            warn("no Inception weights on this machine: no rFID and gFID (docs/evaluation.md)")
        else:
            inception = load_inception(find_inception_weights(path), device=device)
        lpips = load_lpips("vgg", lpips_weights).to(device) if lpips_weights else None
        return cls(inception, lpips)

    @property
    def extractors(self) -> dict[str, Any]:
        """As evaluators take them."""
        return {} if self.inception is None else {"inception": self.inception}

    def pair_metrics(self) -> list[str]:
        """What is measured of reconstructions."""
        chosen = {"rfid": self.inception is not None, "lpips": self.lpips is not None}
        return ["psnr", "ssim", *(name for name, there in chosen.items() if there)]
