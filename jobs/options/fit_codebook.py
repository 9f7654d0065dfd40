"""Options of `jobs/fit_codebook.py`."""

from dataclasses import dataclass
from typing import Literal

from common.build import check_least
from common.config import option
from data import DATASETS


@dataclass(kw_only=True)
class FitOptions:
    """Which features of which images to cluster, into how many codes."""

    teacher: dict = option(help="section of a network: name (in timm), weights, grid, project, input_size")
    data: dict = option(help="data set section; random augmentation is off", kinds=DATASETS)
    output: str = option(help="run folder to write")
    image_size: int = option(256, "side of the images that the tokenizer takes")
    codebook_size: int = option(8192, "number of codes")
    metric: Literal["cosine", "euclidean"] = option("cosine", "cosine: unit features and codes")
    iterations: int = option(20, "passes over the images; fewer if the codes stop moving")
    images: int = option(0, "number of images to use, evenly chosen; 0 = all")
    seed: int = option(42, "random seed of the features that k-means starts from")
    batch_size: int = option(64, "images per process and batch")
    num_workers: int | Literal["auto"] = option(
        "auto", "data loading processes per process; auto = by the machine's cores"
    )
    max_skipped: float = option(0.01, "the job stops when a larger share of the images cannot be read")

    def __post_init__(self) -> None:
        check_least(self, codebook_size=1, iterations=1, batch_size=1, images=0)
