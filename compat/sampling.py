"""Inference files of the original code release, and its generators' training files, as options of sampling."""

from collections.abc import Mapping
from typing import Any

from common.build import ConfigError
from compat.keys import SECTIONS, divide, overlay
from compat.models import generator_section, sampling_section, tokenizer_section
from compat.runs import tokenizer_weights


def translate_sampling(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sample_imagenet.py from an original tree: `generator`, `tokenizer`, `output` and our own keys.

    A tree without the original's section `model` is returned as it is.

    Raises:
        ConfigError: a key is unknown, or names no weight file.
    """
    if not isinstance(tree.get("model"), Mapping):
        return dict(tree)
    ours = {key: value for key, value in tree.items() if key not in SECTIONS}
    flat, _ = divide({key: value for key, value in tree.items() if key in SECTIONS}, "generator")
    section = tokenizer_section(tree)
    key = "experiment.generator_checkpoint"
    weights = {"generator": (key, flat.get(key)), "tokenizer": tokenizer_weights(tree, flat, section)}
    for name, (named_by, value) in weights.items():
        if not value and name not in ours:
            raise ConfigError(f"{named_by} is missing; expected the weight file of the {name}")
    result: dict[str, Any] = {
        "generator": {
            "weights": weights["generator"][1],
            "generator": generator_section(tree),
            "sampling": sampling_section(tree),
        },
        "tokenizer": {"weights": weights["tokenizer"][1], "tokenizer": section},
    }
    if flat.get("experiment.output_dir"):
        result["output"] = flat["experiment.output_dir"]
    return overlay(result, ours)
