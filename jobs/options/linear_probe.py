"""Options of `jobs/linear_probe.py`."""

from dataclasses import dataclass

from common.build import check_least
from common.config import option
from training.tokenizer_settings import ImageData


@dataclass(kw_only=True)
class ProbeOptions:
    """What to probe, on which labelled images."""

    tokenizer: str = option(help="name of a released model or folder")
    data: ImageData = option(
        ImageData(
            train={"name": "openmoji", "skin_tones": False, "split": "train"},
            validation={"name": "openmoji", "skin_tones": False, "split": "validation"},
        ),
        "sections train (the classifier learns them) and validation (it is measured on them)",
    )
    decays: list[float] = option([0.001, 0.01, 0.1], "weights of |W|^2 / 2; every one gives a probe")
    batch_size: int = option(64, "images per batch and process")
    output: str = option("probe.json", "where the result goes")

    def __post_init__(self) -> None:
        check_least(self, batch_size=1)
        if not self.decays or min(self.decays) <= 0:
            raise ValueError(f"decays={self.decays} must be numbers above 0, at least one")
