"""Bring a model from wherever it is into this project's folder format: config.json and model.safetensors.

    python scripts/convert_checkpoint.py input=titok-l32 output=models/titok-l32
    python scripts/convert_checkpoint.py input=rar_b.bin original=rar.yaml kind=generator output=models/rar-b
    python scripts/convert_checkpoint.py input=organisation/repository output=models/theirs

The folder is taken wherever a model is named: tokenizer=models/titok-l32. Files of the original are checked entry by
entry and never run code. Converting again writes the same files.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import option, run_script
from common.console import say
from modeling.pretrained.hub import save_pretrained
from modeling.pretrained.loading import load_files
from modeling.pretrained.references import open_model
from storage.weights import weight_hash


@dataclass(kw_only=True)
class ConvertOptions:
    """Which model, and where to."""

    input: str | dict = option(help="released name, folder, weight file, Hub repository")
    output: str = option(help="folder for config.json and model.safetensors")
    original: str | None = option(None, "YAML or JSON that describes a weight file without one beside it")
    kind: Literal["tokenizer", "generator"] | None = option(None, "null = what the weights are")


def main(options: ConvertOptions) -> None:
    """Load strictly, write, and say what it was."""
    files = open_model(options.input, options.kind, options.original)
    module = load_files(files)
    extra = {key: files.config[key] for key in ("sampling", "tokens") if files.config.get(key)}
    folder = save_pretrained(module, options.output, **extra)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    say(f"{files.kind} {files.name}: {parameters:,} parameters, weights {weight_hash(module)}, in {folder}")


if __name__ == "__main__":
    run_script(main, ConvertOptions, __doc__)
