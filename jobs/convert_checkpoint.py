"""A model as a folder with config.json and model.safetensors."""

from dataclasses import dataclass
from typing import Literal

from common.config import option
from common.console import say
from modeling.pretrained.hub import save_pretrained
from modeling.pretrained.loading import load_files
from modeling.pretrained.model_names import open_model
from storage.locks import reserved_folder
from storage.weights import weight_hash


@dataclass(kw_only=True)
class ConvertCheckpointOptions:
    """Which model to convert."""

    input: str | dict = option(help="released name, folder, weight file, Hub repository")
    output: str = option(help="folder for config.json and model.safetensors")
    original: str | None = option(None, "YAML or JSON that describes a weight file; null = found beside it")
    kind: Literal["tokenizer", "generator"] | None = option(None, "null = found from the weights")


def convert_checkpoint(options: ConvertCheckpointOptions) -> None:
    """Load strictly, write, and report."""
    with reserved_folder(options.output):
        _convert(options)


def _convert(options: ConvertCheckpointOptions) -> None:
    files = open_model(options.input, options.kind, options.original)
    module = load_files(files)
    extra = {key: files.config[key] for key in ("sampling", "tokens") if files.config.get(key)}  # generators
    folder = save_pretrained(module, options.output, **extra)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    say(f"{files.kind} {files.name}: {parameters:,} parameters, weights {weight_hash(module)}, in {folder}")
