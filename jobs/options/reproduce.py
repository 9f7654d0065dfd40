"""Options of `jobs/reproduce.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.build import check_least
from common.choices import FeaturePrecision, Precision
from common.config import option, to_tree
from data import DATASETS
from jobs.options.evaluate import EvaluateOptions

REFERENCE = "VIRTUAL_imagenet256_labeled.npz"

FREE = ("output", "batch_size", "overwrite")  # options that change no number


@dataclass(kw_only=True)
class ReproduceOptions:
    """Which model to measure, with which files."""

    model: str = option(help="name of a released model (docs/models.md)")
    output: str = option(help="folder for result.json and a generator's samples")
    reference: str | None = option(None, f"generators: {REFERENCE}, or images")
    images: str | None = option(None, "tokenizers: validation images as a folder, .npz or 'val-{00..49}.tar'")
    data: dict | None = option(
        None, "tokenizers: data set section in place of images; null = of its run", kinds=DATASETS
    )
    image_size: int | None = option(None, "convolutional tokenizers: image size; null = its own")
    lpips_weights: list[str] | None = option(None, "tokenizers: VGG-16 and linear heads; null = no LPIPS")
    num_samples: int = option(50_000, "samples to draw, or validation images at most, evenly spaced")
    seed: int = option(0, "random seed of the samples")
    batch_size: int = option(64, "per process")
    inception_weights: str | None = option(None, "file; null = INCEPTION_WEIGHTS, torch's cache, or download")
    feature_precision: FeaturePrecision = option("float32", "of Inception; half precision is approximate")
    precision: Precision = option("float32", "of the model's weights and computation (docs/precision.md)")
    text_encoder: str | None = option(None, "tatitok: weights of the CLIP text tower; null = from the hub")
    overwrite: bool = option(False, "measure again; replace samples made with other settings")

    def __post_init__(self) -> None:
        check_least(self, num_samples=2, batch_size=1)  # FID needs a covariance
        if self.images is not None and self.data is not None:
            raise ValueError("set at most one of images and data")

    @property
    def result_file(self) -> Path:
        return Path(self.output) / "result.json"

    @property
    def settings(self) -> dict[str, Any]:
        """The options that a result depends on."""
        return {key: value for key, value in to_tree(self).items() if key not in FREE}

    def evaluation(self, **options: Any) -> EvaluateOptions:
        """The options of `jobs.evaluate` for the same measurement."""
        shared = ("inception_weights", "feature_precision", "batch_size")
        return EvaluateOptions(**{key: getattr(self, key) for key in shared}, **options)
