"""Run files of the original code release (arXiv:2406.07550, arXiv:2411.00776, arXiv:2501.07730) in our terms.

docs/original_configs.md lists the whole correspondence.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from common.build import ConfigError, check_value
from compat.keys import (
    BASE,
    CAPTIONS,
    CLASSES,
    CROP_SIZE,
    EVAL_SHARDS,
    FILTERING,
    OF_KIND,
    PEAK,
    REQUIRED_WITH_PIXELS,
    SHARED,
    TOKEN_FILE,
    TRAIN_SHARDS,
    Kind,
    divide,
    overlay,
)
from compat.models import generator_section, sampling_section, tokenizer_section

WEIGHT_FILES = (".bin", ".safetensors", ".pt", ".pth")  # these need a section that describes the model


def translate_run(tree: Mapping[str, Any], kind: Kind, settings: type) -> dict[str, Any]:
    """The merged and resolved tree of a training run in our terms; unchanged without the original's section `model`.

    Raises:
        ConfigError: a key is unknown (names the nearest) or missing, a value has no counterpart here, or the run is of
            the other kind.
    """
    if not isinstance(tree.get("model"), Mapping):
        return dict(tree)
    flat, ours = divide(tree, kind, settings)
    result: dict[str, Any] = {"experiment": {}, "training": {}, "optimizer": {}, "schedule": {}}
    for key, target in (SHARED | OF_KIND[kind]).items():
        if target and key in flat:
            _put(result, target, flat[key])
    _common(result, flat)
    (_tokenizer_run if kind == "tokenizer" else _generator_run)(result, tree, flat, ours)
    result = overlay(result, ours, settings)  # our keys win
    for name, key in (("train", TRAIN_SHARDS), ("validation", EVAL_SHARDS), ("images", TRAIN_SHARDS)):
        section = result["data"].get(name) if isinstance(result["data"], Mapping) else None
        if isinstance(section, Mapping) and section.get("path", "") is None:
            raise ConfigError(f"{key} is missing; expected a pattern of tar shards")
    return result


def _put(result: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        result = result.setdefault(section, {})
    result[key] = value


def _flag(flat: Mapping[str, Any], key: str, default: bool = False) -> bool:
    return check_value(key, flat.get(key, default), bool)


def _common(result: dict[str, Any], flat: Mapping[str, Any]) -> None:
    """Keys of all runs whose values are translated too."""
    if not _flag(flat, "experiment.resume", True):
        raise ConfigError(
            "experiment.resume=False is not supported: runs always resume; choose another experiment.output_dir"
        )
    experiment, training = result["experiment"], result["training"]
    if not experiment.get("output_dir") and experiment.get("name"):
        experiment["output_dir"] = f"runs/{experiment['name']}"
    if "training.enable_wandb" in flat:
        experiment["trackers"] = ["wandb" if _flag(flat, "training.enable_wandb") else "tensorboard"]
    if "training.enable_tf32" in flat:
        training["matmul_precision"] = "high" if _flag(flat, "training.enable_tf32") else "highest"
    # The original's decay is fixed.
    training["ema_decay"] = 0.999 if _flag(flat, "training.use_ema") else None
    if flat.get("optimizer.name", "adamw") != "adamw":
        raise ConfigError(f"optimizer.name={flat['optimizer.name']!r} is not known; expected adamw")
    if (scheduler := flat.get("lr_scheduler.scheduler", "cosine")) not in ("cosine", "constant"):
        # Others of our schedules may differ from the original's of the same name.
        raise ConfigError(f"lr_scheduler.scheduler={scheduler!r} is not known; expected cosine or constant")
    if result["schedule"].get("name") != "constant" and flat.get(BASE, flat.get(PEAK)) != flat.get(PEAK):
        raise ConfigError(f"{BASE}={flat[BASE]!r} must equal {PEAK}={flat.get(PEAK)!r}")


def _tokenizer_run(result: dict, tree: Mapping, flat: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    captions = _flag(flat, CAPTIONS)
    section = tokenizer_section(tree)
    result["tokenizer"] = section
    layout = section.get("layout", "single_stage")
    if layout != "single_stage":
        teacher = tree["model"]["vq_model"].get("pretrained_tokenizer_weight")
        result["teacher"] = _reference(teacher, {"name": "maskgit_vqgan"})  # its codes are the proxy
    first = section | {"layout": "proxy"} if layout == "two_stage" else section  # what init_weight holds
    result["initialize"] = _reference(flat.get("experiment.init_weight"), first)
    losses = result.setdefault("losses", {})
    if layout == "proxy":  # the only other term, the cross-entropy of the teacher's codes, has weight 1
        result["losses"] = {k: v for k, v in losses.items() if k == "quantizer_weight"}
        result["discriminator"] = None
        result.pop("discriminator_learning_rate", None)
    else:
        for key in REQUIRED_WITH_PIXELS:
            if key not in flat and key.split(".")[-1] not in ours.get("losses", {}):
                raise ConfigError(f"{key} is missing; the original has no default for it")
        losses["perceptual"] = perceptual_shares(flat["losses.perceptual_loss"])
        # The original's discriminator, whose sizes its files do not name.
        result["discriminator"] = {"name": "nlayer", "base_channels": 128, "num_stages": 3, "pooled_size": 16}
    image_size = flat.get(CROP_SIZE, section.get("image_size", 256))
    result["data"] = {
        "train": _train_images(flat, image_size, captions, 1000),
        "validation": _shards(flat.get(EVAL_SHARDS), image_size) | {"num_classes": 1000},
    }


def _generator_run(result: dict, tree: Mapping, flat: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if flat.get("experiment.init_weight"):
        weights = flat["experiment.init_weight"]
        raise ConfigError(
            f"experiment.init_weight={weights!r} is not supported: generators start from scratch"
        )
    generator, options = generator_section(tree), tree["model"]["generator"]
    result |= {"generator": generator, "sampling": sampling_section(tree)}
    task = "rar" if generator["name"] == "rar" else "maskgit"
    keys = ("class_label_dropout", "randomness_anneal_start", "randomness_anneal_end")
    # Keys of the original's model that are ours of the training task; MaskGIT has no annealing.
    given = {key: options[key] for key in (keys if task == "rar" else keys[:1]) if key in options}
    smoothing = result.pop("maskgit", {})  # RAR's training has no such terms
    result[task] = given | (smoothing if task == "maskgit" else {})
    section = tokenizer_section(tree)
    key, weights = tokenizer_weights(tree, flat, section)
    result["data"] = data = {"tokenizer": _reference(weights, section)}
    wanted = ours.get("data") if isinstance(ours.get("data"), Mapping) else {}
    if "tokens" not in wanted and ("images" in wanted or not flat.get(TOKEN_FILE)):
        classes = generator.get("num_classes", 1000)
        size = flat.get(CROP_SIZE, section.get("image_size", 256))
        data["images"] = _train_images(flat, size, _flag(flat, CAPTIONS), classes)
        if not weights and "tokenizer" not in wanted:
            raise ConfigError(f"{key} is missing; expected the tokenizer of the images")
    elif "tokens" not in wanted:
        data["tokens"] = flat[TOKEN_FILE]


def _reference(weights: str | None, section: Mapping[str, Any]) -> str | dict[str, Any] | None:
    """The name of a model: unchanged, or the weight file with the section of its model."""
    if not weights:  # files write "" for none
        return None
    if PurePath(str(weights)).suffix not in WEIGHT_FILES:
        return weights
    return {"weights": weights, "tokenizer": dict(section)}


def tokenizer_weights(
    tree: Mapping[str, Any], flat: Mapping[str, Any], section: Mapping[str, Any]
) -> tuple[str, str | None]:
    """The key that names the weights of a generator's tokenizer, and its value, None if empty."""
    if section["name"] == "maskgit_vqgan":
        key = "pretrained_tokenizer_weight"
        return f"model.vq_model.{key}", tree["model"]["vq_model"].get(key) or None
    key = "experiment.tokenizer_checkpoint"
    return key, flat.get(key) or None


def perceptual_shares(name: Any) -> dict[str, float]:
    """Weights of the two networks in the original's name of a perceptual loss.

    That is "lpips", "convnext_s", or both with their weights, such as "lpips-convnext_s-1.0-0.1" (arXiv:2501.07730);
    ConfigError for anything else.
    """
    error = ConfigError(
        f"losses.perceptual_loss={name!r} is not known; expected lpips, convnext_s or, with weights,"
        " lpips-convnext_s-1.0-0.1"
    )
    lpips, convnext = "lpips" in str(name), "convnext_s" in str(name)
    if not (lpips or convnext):
        raise error
    if not (lpips and convnext):
        return {"lpips_weight": float(lpips), "convnext_weight": float(convnext)}
    try:
        first, second = (float(field) for field in str(name).split("-")[-2:])
    except ValueError:
        raise error from None
    return {"lpips_weight": first, "convnext_weight": second}


def _shards(pattern: Any, image_size: Any) -> dict[str, Any]:
    """A data section over tar shards."""
    # The original joins several patterns by "::".
    path = pattern.split("::") if isinstance(pattern, str) and "::" in pattern else pattern or None
    return {"name": "webdataset", "path": path, "image_size": image_size}


def _train_images(
    flat: Mapping[str, Any], image_size: Any, captions: bool, num_classes: int
) -> dict[str, Any]:
    section = _shards(flat.get(TRAIN_SHARDS), image_size)
    for key in ("resize_shorter_edge", "random_crop", "random_flip"):
        if f"dataset.preprocessing.{key}" in flat:
            section[key] = flat[f"dataset.preprocessing.{key}"]
    if _flag(flat, CLASSES, not captions):
        section["num_classes"] = num_classes
    elif not captions:
        raise ConfigError(f"{CLASSES}=False needs {CAPTIONS}=true: images come with classes or with captions")
    if captions:
        section["captions"] = True
    if _flag(flat, FILTERING):  # the original keeps 0.5 <= height / width <= 2 and longer sides >= 256 pixels
        section |= {"max_aspect": 2.0, "min_side": 256}
    return section
