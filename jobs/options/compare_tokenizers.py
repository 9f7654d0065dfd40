"""Options of `jobs/compare_tokenizers.py`."""

from dataclasses import dataclass
from pathlib import Path

from common.build import check_least
from common.config import option
from jobs.comparison_table import TRAINED_HERE
from training.tokenizer_settings import ImageData

SMALL = ["vqgan", "cvq", "fsq", "lfq", "bsq", "ibq", "vqkd", "vqkd_pixels", "cluster_pixels"]


@dataclass(kw_only=True)
class CompareOptions:
    """What to compare, on which images, and how long to train."""

    tokenizers: list[str] = option([], "released names, folders or files of tokenizers (docs/models.md)")
    train: list[str] | None = option(
        None, "recipes to train; null = configs/compare, or none with tokenizers"
    )
    output: str = option("runs/compare", "folder for everything")
    steps: int | None = option(None, "training steps of every tokenizer; null = as its recipe says")
    gpt: str = option("configs/compare/gpt.yaml", "recipe of the generator")
    gpt_steps: int | None = option(None, "training steps of every generator; null = as its recipe says")
    data: ImageData = option(
        ImageData(
            train={"name": "openmoji", "skin_tones": False, "split": "train"},
            validation={"name": "openmoji", "skin_tones": False, "split": "validation"},
        ),
        "sections train (tokens to learn) and validation (what is measured)",
    )
    teacher_weights: str | None = option(
        TRAINED_HERE,
        f"for recipes with a teacher: a file, {TRAINED_HERE!r} (on labels), or null = from the Hub",
    )
    teacher_steps: int = option(1500, "training steps of a teacher that learns here to classify the images")
    fit_iterations: int = option(10, "cluster: passes of k-means over the images")
    num_samples: int = option(200, "samples per generator; gFID needs 50000")
    seed: int = option(0, "random seed of the samples")
    batch_size: int = option(64, "images per batch")
    num_workers: int = option(0, "data loading processes for tokenizing and fitting")
    inception_weights: str | None = option(
        None, "file; null = INCEPTION_WEIGHTS or torch's cache, else no FID"
    )
    lpips_weights: list[str] | None = option(None, "files: VGG-16 trunk and linear heads; null = no LPIPS")

    def __post_init__(self) -> None:
        check_least(
            self, steps=1, gpt_steps=1, teacher_steps=1, fit_iterations=1, num_samples=1, batch_size=1
        )
        if self.train is None:
            self.train = [] if self.tokenizers else [f"configs/compare/{name}.yaml" for name in SMALL]
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"train and tokenizers name {', '.join(twice)} twice; each name is a folder")

    @property
    def names(self) -> list[str]:
        """Names of the rows and folders of all tokenizers."""
        return [*(Path(path).stem for path in self.train), *(Path(name).name for name in self.tokenizers)]

    @property
    def folder(self) -> Path:
        return Path(self.output)

    def run_folder(self, name: str) -> Path:
        """Run folder of a tokenizer that is trained here."""
        return self.folder / "tokenizers" / name
