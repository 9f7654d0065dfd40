"""The keys of the original release's YAML files, and how a tree with their keys and ours is divided.

`divide` accounts for every key of merged files and overrides: the original's are in the tables below, those of its
section `model` in models.py, and all others must be ours.
"""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, get_type_hints

from common.build import ConfigError, nearest
from common.recipes import leave_out, merge, plain, with_origin

Kind = Literal["tokenizer", "generator"]

TRAIN_SHARDS = "dataset.params.train_shards_path_or_url"
EVAL_SHARDS = "dataset.params.eval_shards_path_or_url"
TOKEN_FILE = "dataset.params.pretokenization"
CAPTIONS, CLASSES = "dataset.params.dataset_with_text_label", "dataset.params.dataset_with_class_label"
CROP_SIZE, FILTERING = "dataset.preprocessing.crop_size", "dataset.preprocessing.res_ratio_filtering"
PEAK, BASE = "optimizer.params.learning_rate", "lr_scheduler.params.learning_rate"

SECTIONS = ("experiment", "model", "losses", "dataset", "optimizer", "lr_scheduler", "training")
NESTED = ("optimizer.params", "lr_scheduler.params", "dataset.params", "dataset.preprocessing")

# The original's key -> our key with the same meaning, or None if runs.py translates the value too.
SHARED: dict[str, str | None] = {
    "experiment.project": "experiment.project",
    "experiment.name": "experiment.name",
    "experiment.output_dir": "experiment.output_dir",
    "experiment.save_every": "training.save_every",
    "experiment.eval_every": "training.evaluate_every",
    "experiment.generate_every": "training.preview_every",
    "experiment.log_every": "training.log_every",
    "experiment.resume": None,
    "experiment.init_weight": None,
    "dataset.params.num_workers_per_gpu": "training.num_workers",
    TRAIN_SHARDS: None,
    EVAL_SHARDS: None,
    CAPTIONS: None,
    CLASSES: None,
    CROP_SIZE: None,
    FILTERING: None,
    "dataset.preprocessing.resize_shorter_edge": None,
    "dataset.preprocessing.random_crop": None,
    "dataset.preprocessing.random_flip": None,
    "optimizer.name": None,
    PEAK: "optimizer.learning_rate",
    "optimizer.params.beta1": "optimizer.beta1",
    "optimizer.params.beta2": "optimizer.beta2",
    "optimizer.params.weight_decay": "optimizer.weight_decay",
    "lr_scheduler.scheduler": "schedule.name",
    BASE: None,
    "lr_scheduler.params.warmup_steps": "schedule.warmup_steps",
    "lr_scheduler.params.end_lr": "schedule.end_lr",
    "training.gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "training.per_gpu_batch_size": "training.per_gpu_batch_size",
    "training.mixed_precision": "training.mixed_precision",
    "training.max_grad_norm": "training.max_grad_norm",
    "training.max_train_steps": "training.max_steps",
    "training.seed": "experiment.seed",
    "training.enable_wandb": None,
    "training.enable_tf32": None,
    "training.use_ema": None,
}
# Without default in the original, which reads them if a tokenizer is trained on pixels.
REQUIRED_WITH_PIXELS = (
    *("losses.discriminator_start", "losses.discriminator_factor", "losses.discriminator_weight"),
    *("losses.perceptual_loss", "losses.perceptual_weight"),
    *("losses.reconstruction_loss", "losses.reconstruction_weight"),
    "losses.lecam_regularization_weight",
)
OPTIONAL_LOSSES = tuple(
    f"losses.{key}" for key in ("quantizer_weight", "lecam_ema_decay", "kl_weight", "logvar_init")
)
OF_KIND: dict[Kind, dict[str, str | None]] = {
    "tokenizer": {
        "optimizer.params.discriminator_learning_rate": "discriminator_learning_rate",
        **{key: key for key in (*REQUIRED_WITH_PIXELS, *OPTIONAL_LOSSES)},
        "losses.perceptual_loss": None,
    },
    "generator": {
        "losses.label_smoothing": "maskgit.label_smoothing",
        "losses.loss_weight_unmasked_token": "maskgit.unmasked_weight",
        "experiment.tokenizer_checkpoint": None,
        TOKEN_FILE: None,
    },
}
# Known keys that change nothing here, and why.
UNUSED = {
    "experiment.max_train_examples": "sources know their length; the original counts nominal epochs by it",
    "experiment.log_grad_norm_every": "the norm of the whole gradient is logged with everything else",
    "experiment.logging_dir": "trackers write into the run folder",
    "experiment.generator_checkpoint": "names weights to sample from",
    "optimizer.params.epsilon": "the original does not read it either; optimizer.epsilon is read",
    "training.num_generated_images": "previews have a fixed number of images",
}


def divide(
    tree: Mapping[str, Any], kind: Kind, settings: type | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The original's keys of a tree, dotted and without those of `model`, and our keys, nested.

    Args:
        tree: merged and resolved, with a section `model`.
        settings: our dataclass of the run; sections that both sides have may hold keys of both.

    Raises:
        ConfigError: a key is neither the original's nor ours (names the nearest), or the model is of another kind.
    """
    _check_kind(tree["model"], kind)
    known = [*SHARED, *OF_KIND[kind], *UNUSED]
    hints = get_type_hints(settings) if settings else {}
    flat: dict[str, Any] = {}
    ours: dict[str, Any] = {}

    def read(path: str, section: Any) -> None:
        if not isinstance(section, Mapping):
            raise ConfigError(f"{path}={section!r} has the wrong type; expected section")
        hint = hints.get(path)
        own = [field.name for field in dataclasses.fields(hint)] if dataclasses.is_dataclass(hint) else []
        for key, value in section.items():
            dotted = f"{path}.{key}"
            if dotted in NESTED:
                read(dotted, value)
            elif dotted in known:
                flat[dotted] = value
            elif key in own:
                ours.setdefault(path, {})[key] = value
            else:
                theirs = [k.split(".")[-1] for k in (*known, *NESTED) if k.rpartition(".")[0] == path]
                raise _unknown(dotted, key, own + theirs)

    for key, value in tree.items():
        if key in SECTIONS and key != "model":
            read(key, value)
        elif key not in SECTIONS:
            if get_close_matches(str(key), SECTIONS, n=1, cutoff=0.85):  # a typo: ours are less alike
                raise _unknown(key, key, SECTIONS)
            ours[key] = value
    return flat, ours


def overlay(translated: dict, ours: dict, settings: type | None = None) -> dict:
    """Our own keys over translated ones, as a later source over an earlier one (`common.recipes`)."""
    merged = merge(with_origin(translated, "the original's keys"), with_origin(ours, "our keys"))
    return plain(leave_out(merged, settings) if settings else merged)


def _check_kind(model: Mapping[str, Any], kind: Kind) -> None:
    if "maskgen" in model:
        raise ConfigError("model.maskgen: text-to-image generators are not supported")
    parts = ("vq_model", "generator")
    for key in model:
        if key not in parts:
            raise _unknown(f"model.{key}", key, parts)
    for key in ("vq_model",) if kind == "tokenizer" else parts:
        if not isinstance(model.get(key), Mapping):
            raise ConfigError(f"model.{key} is missing; expected a section")
    if kind == "tokenizer" and "generator" in model:
        raise ConfigError("model.generator is not used: a tokenizer's file has model.vq_model alone")


def _unknown(dotted: Any, key: Any, options: Any) -> ConfigError:
    return ConfigError(
        f"{dotted} is not an option{nearest(key, options)}; options: {', '.join(sorted(set(options)))}"
    )
