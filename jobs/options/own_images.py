"""The options of `scripts/own_images.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.build import ConfigError, check_least
from common.config import option, to_tree

FREE = ("output", "plan", "gpu")  # options that change nothing of what is trained


@dataclass(kw_only=True)
class OwnImagesOptions:
    """Which images, and how much time."""

    images: str = option(help="folder of images: a folder per class, or all in one; or a CSV or JSON list")
    output: str = option("runs/own", "folder for everything")
    minutes: float = option(30.0, "how long all of it may take; short runs give worse images")
    device: Literal["auto", "cpu", "gpu"] = option("auto", "auto = a GPU if there is one")
    generator: Literal["rar", "maskgit"] = option("rar", "kind of generator (docs/rar.md, docs/maskgit.md)")
    image_size: int | None = option(None, "side of the images, a multiple of 8; null = as the table says")
    validation: float = option(0.1, "share of the images that is held out")
    samples: int | None = option(None, "images to draw; null = 16 of every class, 64 to 800 in all")
    seed: int = option(0, "of the split, training and samples")
    plan: bool = option(False, "stop after saying what would be done")
    gpu: str = option("t4", "kind of GPU to plan for where there is none (scripts/plan.py)")

    def __post_init__(self) -> None:
        check_least(self, samples=1, image_size=16)
        if not 0 < self.validation < 1:
            raise ConfigError(f"validation={self.validation} must be a share between 0 and 1")
        if not self.minutes > 0:
            raise ConfigError(f"minutes={self.minutes} must be positive")
        if self.image_size is not None and self.image_size % 8:
            raise ConfigError(f"image_size={self.image_size} must be a multiple of 8, the side of a patch")

    @property
    def folder(self) -> Path:
        return Path(self.output)

    @property
    def settings(self) -> dict:
        """The options that the result depends on."""
        return {key: value for key, value in to_tree(self).items() if key not in FREE}
