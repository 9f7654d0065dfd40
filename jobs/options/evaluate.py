"""Options of `jobs/evaluation_run.py`."""

from dataclasses import dataclass
from typing import Literal

from common.build import check_least
from common.choices import Alpha, FeaturePrecision, Orientation, Precision, QualityName, Resize
from common.config import option
from evaluator.spaces import check_weight_names


@dataclass(kw_only=True)
class EvaluateOptions:
    """What to measure, against what, and how."""

    samples: str = option(help="images to measure; with a tokenizer, to reconstruct")
    reference: str | None = option(None, "ADM statistics (.npz), or images")
    output: str = option("result.json", "where the result goes")
    pictures: int = option(8, "columns of the picture beside it: samples, or pairs, worst and best; 0 = none")
    metrics: list[str] | None = option(
        None,
        "fid, kid, is, mind, fdr6, psnr, ssim, ...: all in docs/evaluation.md; null = the usual ones",
    )
    protocol: Literal["adm", "torch-fidelity", "tokenizer"] | None = option(
        None, "splits, subsets, distances of that tool; null = tokenizer with a tokenizer, else adm"
    )
    tokenizer: str | None = option(None, "name of a released model or folder: measure its reconstructions")
    max_images: int | None = option(None, "of samples and of reference images, evenly spaced; null = all")
    pairs: Literal["name", "order"] = option("name", "how psnr, ssim, lpips find the original of a sample")
    crop: Literal["no", Resize] | None = option(
        None, "of samples and reference images; null = shorter_edge with a tokenizer, else no"
    )
    image_size: int | None = option(None, "side after the crop; null = that of the tokenizer")
    alpha: Alpha = option("white", "transparent pixels: on white, or drop alpha as many tools do")
    orientation: Orientation = option(
        "stored", "EXIF: as stored in published protocols; upright turns images"
    )
    batch_size: int = option(64, "per process")
    truncate: bool = option(False, "cut reconstructions to 8 bit instead of rounding them")
    quality: QualityName = option("rounded", "PSNR and SSIM as that tool computes them")
    reference_set: Literal["training", "validation"] | None = option(None, "what the reference images are")
    make_ref: str | None = option(None, "write a reference of the samples to this .npz and measure nothing")
    keep_images: int = option(0, "images stored in the reference, for precision and recall; ADM: 10000")
    features: str | None = option(
        None, "folder that keeps features, so that later metrics of the same images need no network"
    )
    training_tokens: str | None = option(
        None, "token file of the generator's training: count samples whose tokens are a row of it"
    )
    inception_weights: str | None = option(None, "file; null = INCEPTION_WEIGHTS, torch's cache, or download")
    space_weights: dict[str, str] = option(
        {}, "files of feature networks by space: {dinov2: FILE, mae: FILE}"
    )
    feature_precision: FeaturePrecision = option(
        "float32", "of the feature networks; half precision is approximate"
    )
    precision: Precision = option("float32", "of the tokenizer's weights and computation (docs/precision.md)")
    lpips_weights: list[str] | None = option(None, "files for lpips: VGG-16 trunk and linear heads")

    def __post_init__(self) -> None:
        check_least(self, batch_size=1, keep_images=0, pictures=0)
        check_weight_names(self.space_weights, "space_weights")
        if self.tokenizer is None and (self.image_size is None) != (self.crop in (None, "no")):
            raise ValueError(f"crop={self.crop} and image_size={self.image_size} go together")
        if self.precision != "float32" and self.tokenizer is None:
            raise ValueError(
                f"precision={self.precision} is for a tokenizer; feature_precision is for the network behind metrics"
            )
        if self.make_ref is not None and (self.reference is not None or self.tokenizer is not None):
            raise ValueError("make_ref takes neither a reference nor a tokenizer: it describes the samples")
        if self.make_ref is not None and not self.make_ref.endswith(".npz"):
            raise ValueError(f"make_ref={self.make_ref} must have the suffix .npz")
        if self.tokenizer is not None and self.reference_set is not None and self.reference is None:
            raise ValueError("reference_set needs a reference: without it, the originals are the reference")
