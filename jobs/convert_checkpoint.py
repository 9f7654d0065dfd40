"""A model as a folder with config.json and model.safetensors."""

from pathlib import Path

from torch import nn

from common.console import one_line, say
from jobs.options.convert_checkpoint import ConvertCheckpointOptions
from modeling.pretrained.hub import save_pretrained
from modeling.pretrained.loading import load_files
from modeling.pretrained.model_names import open_model
from storage.locks import reserved_folder
from storage.weights import weight_hash

ADVICE = "choose another output, or overwrite=true"


def convert_checkpoint(options: ConvertCheckpointOptions) -> None:
    """Load strictly, write, and report."""
    with reserved_folder(options.output):
        _convert(options)


def _convert(options: ConvertCheckpointOptions) -> None:
    files = open_model(options.input, options.kind, options.original)
    module = load_files(files)
    extra = {key: files.config[key] for key in ("sampling", "tokens") if files.config.get(key)}  # generators
    if not options.overwrite:
        refuse_other(Path(options.output), module)
    folder = save_pretrained(module, options.output, **extra)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    say(f"{files.kind} {files.name}: {parameters:,} parameters, weights {weight_hash(module)}, in {folder}")


def refuse_other(folder: Path, module: nn.Module) -> None:
    """Raise ValueError if a folder holds a run, or another model than `module`."""
    if (folder / "config.yaml").exists():
        raise ValueError(f"output={folder} is a run folder; choose another output")
    if not (folder / "model.safetensors").exists():
        return
    try:
        held, wanted = weight_hash(load_files(open_model(folder))), weight_hash(module)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"output={folder} holds weights that are no model ({one_line(error)}); {ADVICE}"
        ) from error
    if held != wanted:
        raise ValueError(
            f"output={folder} holds another model (weights {held} instead of {wanted}); {ADVICE}"
        )
