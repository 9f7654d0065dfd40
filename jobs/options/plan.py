"""Options of `jobs/plan.py`."""

from dataclasses import dataclass
from typing import Literal

from common.build import ConfigError, check_least
from common.config import option
from training.gpus import GPUS


@dataclass(kw_only=True)
class PlanOptions:
    """Machines, and what is assumed of them."""

    gpus: int = option(8, "number of GPUs, eight per node")
    gpu: Literal[tuple(GPUS)] = option("a100-80", "kind of GPU")  # type: ignore[valid-type]
    precision: Literal["no", "bf16", "fp16"] | None = option(None, "null = that of the recipe")
    sharding: Literal["none", "full", "hybrid"] | None = option(None, "null = that of the recipe")
    global_batch: int | None = option(
        None, "examples per update, kept by accumulation; null = that of the recipe on this number of GPUs"
    )
    utilisation: float = option(0.35, "share of the GPU's peak that training reaches, communication included")
    examples: int = option(1_281_167, "training examples; those of ImageNet")
    image_kilobytes: float = option(108.0, "per stored image; ImageNet has 138 GB in 1,281,167 files")

    def __post_init__(self) -> None:
        check_least(self, gpus=1, global_batch=1, examples=1)
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"utilisation={self.utilisation} must be in (0, 1]")
