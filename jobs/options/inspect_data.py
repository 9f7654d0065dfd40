"""Options of `jobs/inspect_data.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from common.build import check_least
from common.choices import Alpha, Orientation
from common.config import option
from data import DATASETS


@dataclass(kw_only=True)
class InspectOptions:
    """Which data set to look at."""

    data: str | list[str] | dict = option(
        help="path, pattern, or data section; of config=RECIPE if that is given",
        kinds=DATASETS,
        parts={"train": DATASETS, "validation": DATASETS, "images": DATASETS},
    )
    split: Literal["train", "validation"] = option("train", "which data set of a recipe")
    output: str | None = option(
        None, "folder for inspection.md, .json and contact_sheet.png; null = print only"
    )
    max_images: int | None = option(None, "look at as many at even distances; null = all")
    alpha: Alpha = option("white", "of a path: transparent pixels on white, or drop alpha")
    orientation: Orientation = option("stored", "of a path, EXIF: as stored, or upright")
    workers: int | None = option(None, "threads that decode; null = one per processor, at most 8")

    def __post_init__(self) -> None:
        for key in ("max_images", "workers"):
            if getattr(self, key) is not None:
                check_least(self, **{key: 1})
        for key, usual in {"alpha": "white", "orientation": "stored"}.items():
            if isinstance(self.data, Mapping) and getattr(self, key) != usual:
                raise ValueError(f"{key}={getattr(self, key)} is for a path; a data section takes data.{key}")

    @classmethod
    def translate(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Of a recipe, the data alone."""
        if not {"training", "tokenizer", "generator"} & tree.keys():
            return tree
        known = {field.name for field in fields(cls)}
        return {key: value for key, value in tree.items() if key in known}
