"""Folders that hold a model: a training run, finished or not, one of its checkpoints, or one of its weight files.

run/config.yaml                            section `tokenizer` or `generator`: how to build the model
run/model.safetensors                      the result of a finished run
run/checkpoints/step-00001000/             a folder of the same kind: config.yaml and
    ema.safetensors, model.safetensors     averaged weights (preferred) and raw ones; of sharded training
    ema.shards, model.shards               folders

Output folders of the original project have a config.yaml too; their weights lie in

run/pytorch_model.bin                      the result of a finished run
run/checkpoint-1000/ema_model/, run/checkpoint-1000/unwrapped_model/
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.build import ConfigError, nearest
from common.config import find_file, read_yaml
from storage.weights import SHARDS

CONFIG = "config.yaml"
# In order of preference; an index lists the shards of a large file.
WEIGHTS = ("ema.safetensors", "ema.shards", "model.safetensors", "model.shards", "pytorch_model.bin")
WEIGHTS += ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PARTS = ("ema_model", "unwrapped_model")  # folders inside a checkpoint of the original
MODEL_SECTIONS = ("tokenizer", "generator")
# What may stand in a configuration beside weights: the keys of a training run, of which most are not read here, ...
RUN_KEYS = (  # those of `TokenizerRun` and `GeneratorRun`
    *("experiment", "data", "optimizer", "schedule", "training", "evaluation"),
    *("tokenizer", "teacher", "initialize", "text_encoder", "losses"),
    *("discriminator", "discriminator_learning_rate"),
    *("generator", "rar", "maskgit", "sampling", "tokens"),
)
# ... how a codebook was fitted (`jobs.fit_codebook`), and how to read the weight file: `loading.FORMATS`.
CONFIG_KEYS = (*RUN_KEYS, "fit", "format")


@dataclass(frozen=True)
class ModelFiles:
    """The parts of a model that was found."""

    name: str  # as the user named it
    # In our terms: section `tokenizer` or `generator`, and what else is known, such as `sampling`, `data`, and in
    # `tokens` the tokenizer and the class names of a generator.
    config: dict[str, Any]
    weights: Path  # the file (or folder of shards) to load
    drop: tuple[str, ...] = ()  # entries of the file, with wildcards, that our models do not need
    format: str | None = None  # key of `loading.FORMATS` if the file has other names than ours

    @property
    def kind(self) -> str:
        """What the configuration describes: "tokenizer" or "generator"; ValueError if neither."""
        for kind in MODEL_SECTIONS:
            if isinstance(self.config.get(kind), Mapping):
                return kind
        raise ValueError(f"{self.name}: its configuration describes no model")

    def section(self, name: str) -> dict[str, Any]:
        """The section that describes the model; ValueError if the files hold another kind of model, or none."""
        section = self.config.get(name)
        if isinstance(section, Mapping):
            return dict(section)
        found = [s for s in MODEL_SECTIONS if isinstance(self.config.get(s), Mapping)]
        kinds = f"it holds a {found[0]}" if found else "its configuration describes no model"
        raise ValueError(f"{self.name} is not the folder of a {name}: {kinds}")


def read_model_yaml(path: Path) -> dict[str, Any]:
    """The configuration of a model; what other sections take from a machine's environment may be missing here."""
    return read_yaml(path, needed=("model", *MODEL_SECTIONS, "tokens", "sampling", "format"))


def check_keys(config: Mapping[str, Any], where: str) -> None:
    """Refuse unknown keys of a configuration in our terms: one that is ignored would change how weights are read.

    Raises:
        ConfigError: names `where`, the key and the nearest valid one.
    """
    for key in config:
        if key not in CONFIG_KEYS:
            raise ConfigError(
                f"{where}: {key} is not an option{nearest(key, CONFIG_KEYS)}; options: {', '.join(CONFIG_KEYS)}"
            )


def open_run(path: str | Path) -> ModelFiles:
    """Find configuration and weights in a run folder, a checkpoint folder, or beside a weight file.

    An unfinished run gives its newest checkpoint. `config` is as in the file: not translated, its keys not checked.

    Raises:
        FileNotFoundError: the path, the configuration or the weights do not exist; the message says which.
        ValueError: the configuration cannot be read.
    """
    found = find_file(path, "model folder")
    is_weights = found.is_file() or found.suffix == SHARDS
    folder = found.parent if is_weights else found
    weights = found if is_weights else newest_weights(folder)
    # A checkpoint has its own configuration; that of the run may have changed since.
    for candidate in _config_folders(weights.parent, folder):
        if (candidate / CONFIG).is_file():
            return ModelFiles(name=str(found), config=read_model_yaml(candidate / CONFIG), weights=weights)
    raise FileNotFoundError(f"{weights.parent / CONFIG}, which describes the model, does not exist")


def newest_weights(folder: Path) -> Path:
    """The weight file of a folder, else that of its newest checkpoint with one; FileNotFoundError if there is none."""
    checkpoints = {
        int(p.name.rsplit("-", 1)[1]): p
        for pattern in ("checkpoints/step-*", "checkpoint-*")
        for p in folder.glob(pattern)
        if p.name.rsplit("-", 1)[1].isdigit()
    }
    # An interrupted checkpoint of the original may lack weights.
    for candidate in (folder, *(checkpoints[step] for step in sorted(checkpoints, reverse=True))):
        for place in (candidate, *(candidate / part for part in PARTS)):
            for name in WEIGHTS:
                if (place / name).exists():
                    return place / name
    raise FileNotFoundError(
        f"{folder} holds no weights: neither {' nor '.join(WEIGHTS)}, nor a checkpoint under checkpoints/"
    )


def _config_folders(folder: Path, named: Path) -> Iterator[Path]:
    """Where the configuration of weights in `folder` may lie, best first."""
    yield folder
    yield named
    while folder.name in PARTS or folder.name.startswith("checkpoint-"):  # these of the original have none
        folder = folder.parent
        yield folder
