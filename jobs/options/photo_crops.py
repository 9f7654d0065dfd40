"""Options of `jobs/photo_crops.py`."""

from dataclasses import dataclass

from common.build import check_least
from common.config import option


@dataclass(kw_only=True)
class PhotoCropsOptions:
    """How many pieces, and where the photographs are."""

    output: str = option(help="folder for <class>/<photo>_<number>.jpg and licences.md")
    packages: str | None = option(
        None, "folder of `pip install --target`; null = the packages of this environment"
    )
    count: int = option(1000, "pieces of all photographs together")
    least_side: int = option(64, "pixels of a piece at least")
    seed: int = option(0, "of places and sizes")

    def __post_init__(self) -> None:
        check_least(self, count=1, least_side=16)
