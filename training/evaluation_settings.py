"""What runs measure while they train, as options; `training/evaluation.py` does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.build import ConfigError
from common.config import option
from evaluator.spaces import check_weight_names


@dataclass(kw_only=True)
class TokenizerEvaluation:
    """Metrics of all held-out images, besides codebook usage."""

    metrics: list[str] = option(["psnr", "ssim"], "any of rfid, is, psnr, ssim, lpips")
    inception: str | None = option(None, "weights for rfid and is; null = $INCEPTION_WEIGHTS, or downloaded")
    lpips_path: str | list[str] | None = option(None, "weights for lpips; null = downloaded")

    def __post_init__(self) -> None:
        if self.metrics != ["psnr", "ssim"]:
            _check(self.metrics, "tokenizer")


@dataclass(kw_only=True)
class GeneratorEvaluation:
    """Metrics of samples that the run draws; held-out loss is measured besides if there are held-out tokens."""

    metrics: list[str] = option([], "any of fid, sfid, is, fdr6, and fdr_SPACE")
    num_samples: int = option(5000, "class-balanced; FID is biased upward by about 1 / num_samples")
    reference: str | None = option(
        None, "statistics for fid, sfid, fdr6: an .npz of ADM or of scripts/evaluate.py"
    )
    inception: str | None = option(None, "weights; null = $INCEPTION_WEIGHTS, or downloaded")
    space_weights: dict[str, str] = option({}, "weights by space for fdr: {mae: FILE}; others are downloaded")

    def __post_init__(self) -> None:
        check_weight_names(self.space_weights, "evaluation.space_weights")
        if self.metrics:
            compared = [
                name
                for name, metric in _check(self.metrics, "generator").items()
                if metric.compares == "sets"
            ]
            if compared and self.reference is None:
                raise ConfigError(f"evaluation.reference is missing; {', '.join(compared)} need it")
        if self.num_samples < 2:
            raise ConfigError(f"evaluation.num_samples={self.num_samples} must be at least 2")


def _check(names: Sequence[str], run: str) -> dict[str, Any]:
    """The metrics of these names and their parts; ConfigError for what a "tokenizer" or "generator" cannot measure."""
    from evaluator.metrics import METRICS, training_metrics, with_parts  # here: it needs torch

    known = training_metrics(run)
    for name in names:
        if name not in known:
            why = "not measured during training" if name in METRICS else "unknown"
            raise ConfigError(f"evaluation.metrics: {name!r} is {why}; choose from {', '.join(known)}")
    return {name: METRICS[name] for name in with_parts(names)}
