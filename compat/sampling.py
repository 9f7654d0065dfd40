"""Inference files of the original code release, and training files of its generators, as options of sampling."""

from collections.abc import Mapping
from typing import Any

from common.build import ConfigError
from compat.keys import SECTIONS, divide, overlay
from compat.models import generator_section, sampling_section, tokenizer_section
from compat.runs import tokenizer_weights


def translate_sampling(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sample_imagenet.py from a file that describes a generator.

    Returns:
        `generator` {weights, generator, sampling}, `tokenizer` {weights, tokenizer}, `output` if
        experiment.output_dir is given, and the script's own options as they are. A tree without the original's
        `model` section is returned as it is.

    Raises:
        ConfigError: an unknown key, or a file of weights that is not named.
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
