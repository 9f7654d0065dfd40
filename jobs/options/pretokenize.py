"""Options of `jobs/pretokenize.py`."""

from dataclasses import dataclass
from typing import Literal

from common.choices import Precision
from common.config import option
from data import DATASETS


@dataclass(kw_only=True)
class PretokenizeOptions:
    """Which images to tokenize, with which tokenizer."""

    tokenizer: str | dict = option(help="name of a released model, folder, or file (docs/models.md)")
    output: str = option(help="token file to write")
    data: dict | None = option(None, "data set section; null = that of the tokenizer's run", kinds=DATASETS)
    split: Literal["train", "validation"] = option("train", "which data set of the tokenizer's run")
    crops: Literal["plain", "flip", "ten_crop"] = option("plain", "stored versions of every image")
    precision: Precision = option("float32", "of the tokenizer's weights and computation (docs/precision.md)")
    batch_size: int = option(64, "images per process and batch, each with all its crops")
    num_workers: int | Literal["auto"] = option(
        "auto", "data loading processes per process; auto = by the machine's cores"
    )
    max_skipped: float = option(0.01, "the job stops when a larger share of the images cannot be read")
    overwrite: bool = option(False, "replace a file that holds other tokens")
