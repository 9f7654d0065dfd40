"""Options of `jobs/scaling_table.py`."""

from dataclasses import dataclass
from pathlib import Path

from common.config import REPOSITORY, option


@dataclass(kw_only=True)
class ScalingTableOptions:
    """Which rows, and where to."""

    recipes: list[str] = option([], "below configs/; empty = all of ImageNet")
    output: Path = option(REPOSITORY / "docs" / "scaling.md", "page whose table is replaced")
