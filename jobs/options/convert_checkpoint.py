"""Options of `jobs/convert_checkpoint.py`."""

from dataclasses import dataclass
from typing import Literal

from common.config import option


@dataclass(kw_only=True)
class ConvertCheckpointOptions:
    """Which model to convert."""

    input: str | dict = option(help="released name, folder, weight file, Hub repository")
    output: str = option(help="folder for config.json and model.safetensors")
    original: str | None = option(None, "YAML or JSON that describes a weight file; null = found beside it")
    kind: Literal["tokenizer", "generator"] | None = option(None, "null = found from the weights")
    overwrite: bool = option(False, "replace another model in the folder")
