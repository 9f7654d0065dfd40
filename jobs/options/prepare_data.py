"""Options of `jobs/prepare_data.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.build import check_least
from common.config import option


@dataclass(kw_only=True)
class PrepareOptions:
    """Which images to pack into shards, and how."""

    input: str = option(
        help="folder with ImageNet in any of its forms, or with images; a .tar; a .parquet pattern"
    )
    output: str = option(help="folder of the shards")
    name: str | None = option(None, "first part of shard names; null = imagenet, or that of the input")
    train: str | None = option(None, "where the training images are; null = looked for in input")
    validation: str | None = option(None, "where the validation images are; null = looked for in input")
    annotations: str | None = option(
        None, "file or folder with validation labels and classes; null = in input"
    )
    image_column: str = option("image", "of parquet files")
    label_column: str | None = option("label", "of parquet files; null = no labels")
    caption_column: str | None = option(None, "of parquet files; null = no captions")
    images_per_shard: int | None = option(None, "null = 4000 for training, 1000 for validation")
    seed: int = option(0, "of the order of training images; validation images keep theirs")
    json: bool = option(True, "add .json members with file name, class, width and height")
    check: Literal["header", "pixels"] = option(
        "header", "what is read of every image; pixels decodes it wholly"
    )
    workers: int | None = option(None, "processes; null = one per processor")
    verify: bool = option(False, "compare finished shards with their hashes, and make those anew that differ")
    overwrite: bool = option(False, "replace shards that were made of other images or with other options")

    def __post_init__(self) -> None:
        check_least(self, seed=0)
        for key in ("images_per_shard", "workers"):
            if getattr(self, key) is not None:
                check_least(self, **{key: 1})
