"""Options of `jobs/gpu_check.py`."""

from dataclasses import dataclass
from typing import Literal

from common.build import ConfigError, check_least
from common.config import option
from jobs.gpu_scales import SCALES


@dataclass(kw_only=True)
class GPUCheckOptions:
    """Where, how much, how long."""

    device: str = option("cuda", "device; cpu with size=tiny tries the program itself")
    size: Literal[tuple(SCALES)] = option("full", "full: models of recipes; tiny: their debug twins")  # type: ignore[valid-type]
    seconds: int = option(540, "time for all measurements; what does not fit is left out by name")
    compile: bool = option(True, "also measure torch.compile, where it can be used")
    output: str = option("runs/gpu_check", "folder of result.json and page.md")

    def __post_init__(self) -> None:
        check_least(self, seconds=1)
        import torch  # here: the options are right so far

        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"device={self.device}: PyTorch sees no GPU here; use device=cpu size=tiny to try"
            )
