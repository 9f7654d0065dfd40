"""Folders that hold a model: a training run, finished or not, one of its checkpoints, or one weight file of it.

run/config.yaml                            section `tokenizer` or `generator`: how to build the model
run/model.safetensors                      the result of a finished run
run/checkpoints/step-00001000/             a folder of the same kind: config.yaml and
    ema.safetensors, model.safetensors     averaged weights (they are preferred) and raw ones
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import find_file, read_yaml

CONFIG = "config.yaml"
WEIGHTS = ("ema.safetensors", "model.safetensors", "pytorch_model.bin")  # in order of preference
MODEL_SECTIONS = ("tokenizer", "generator")


@dataclass(frozen=True)
class RunFolder:
    """Where a model's parts were found.

    Attributes:
        path: what the user named.
        config: the resolved configuration of the run.
        weights: the weight file to load.
    """

    path: Path
    config: dict[str, Any]
    weights: Path

    def section(self, name: str) -> dict[str, Any]:
        """The section that describes the model.

        Raises:
            ValueError: this folder holds another kind of model, or none.
        """
        section = self.config.get(name)
        if isinstance(section, Mapping):
            return dict(section)
        found = [s for s in MODEL_SECTIONS if isinstance(self.config.get(s), Mapping)]
        kinds = f"it holds a {found[0]}" if found else "its config.yaml describes no model"
        raise ValueError(f"{self.path} is not the folder of a {name}: {kinds}")


def open_run(path: str | Path) -> RunFolder:
    """Find configuration and weights in a run folder, a checkpoint folder, or beside a weight file.

    A run that is not finished gives its newest checkpoint.

    Raises:
        FileNotFoundError: the path, the configuration or the weights do not exist; the message says which.
        ValueError: the configuration cannot be read.
    """
    found = find_file(path, "model folder")
    folder = found.parent if found.is_file() else found
    weights = found if found.is_file() else _newest_weights(folder)
    if weights is None:
        raise FileNotFoundError(
            f"{found} holds no weights: neither {' nor '.join(WEIGHTS)}, nor a checkpoint under checkpoints/"
        )
    # A checkpoint knows its own configuration; that of the run may have been changed since.
    for candidate in (weights.parent / CONFIG, folder / CONFIG):
        if candidate.is_file():
            return RunFolder(path=found, config=read_yaml(candidate), weights=weights)
    raise FileNotFoundError(f"{weights.parent / CONFIG}, which describes the model, does not exist")


def _newest_weights(folder: Path) -> Path | None:
    """The weight file of a folder, else that of its newest checkpoint that has one."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    checkpoints = [p for p in folder.glob("checkpoints/step-*") if p.name.removeprefix("step-").isdigit()]
    for checkpoint in sorted(checkpoints, key=lambda p: int(p.name.removeprefix("step-")), reverse=True):
        for name in WEIGHTS:
            if (checkpoint / name).is_file():
                return checkpoint / name
    return None
