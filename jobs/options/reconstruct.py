"""Options of `jobs/reconstruct.py`."""

from dataclasses import dataclass
from typing import Literal

from common.build import check_least
from common.choices import Alpha, Orientation, Precision, QualityName, Resize
from common.config import option
from data import DATASETS


@dataclass(kw_only=True)
class ReconstructOptions:
    """Which images to reconstruct, and how."""

    tokenizer: str | dict = option(help="name of a released model, folder, or file (docs/models.md)")
    output: str = option(help="folder for the results")
    input: str | None = option(None, "image, folder (any depth) or 'val-{00..49}.tar'; null = a data set")
    resize: Resize = option("shorter_edge", "how images of `input` are resized before the centre crop")
    alpha: Alpha = option("white", "of `input`: transparent pixels on white, or drop alpha")
    orientation: Orientation | None = option(
        None, "of `input`, EXIF; null = upright, but stored with rfid or another quality, as published"
    )
    data: dict | None = option(None, "data set section; null = that of the tokenizer's run", kinds=DATASETS)
    split: Literal["train", "validation"] = option("validation", "which data set of the tokenizer's run")
    max_images: int | None = option(None, "evenly spaced among all; null = all")
    batch_size: int = option(32, "images per batch; 1 with original_size")
    precision: Precision = option("float32", "of the tokenizer's weights and computation (docs/precision.md)")
    original_size: bool = option(
        False, "keep the sizes of `input`, for convolutional tokenizers (vqgan, ...)"
    )
    max_pixels: int = option(2**22, "original_size: larger images are an error, as they need much memory")
    quality: QualityName = option("rounded", "compute PSNR and SSIM as that tool does; seed_voken: rFID too")
    rfid: bool = option(False, "also measure rFID against the input images")
    inception_weights: str | None = option(None, "for rfid: file; null = INCEPTION_WEIGHTS, or download")
    png: bool = option(True, "write a PNG per image")
    caption: str | None = option(
        None, "tatitok: for all images; null = a.txt beside a.jpg, or of the data set"
    )
    text_encoder: str | None = option(None, "tatitok: weights of the CLIP text tower; null = from the hub")

    def __post_init__(self) -> None:
        check_least(self, batch_size=1, max_images=1)
        if self.input is not None and self.data is not None:
            raise ValueError("set at most one of input and data")
        for key, usual in {"resize": "shorter_edge", "alpha": "white", "orientation": None}.items():
            if self.input is None and getattr(self, key) != usual:
                raise ValueError(f"{key}={getattr(self, key)} is for input=...; a data set takes data.{key}")
        if self.original_size and self.input is None:
            raise ValueError("original_size needs input=...: images of a data set have one size")
