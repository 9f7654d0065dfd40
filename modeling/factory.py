"""Modules from YAML sections: nested parts are built first and handed over ready-made.

Tokenizers and generators keep their section as attribute `section`, so that they can be saved with it.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from common.build import ConfigError, build, check_options, choose
from modeling.generators import GENERATORS
from modeling.layers.trainable import Trainable
from modeling.losses import DISCRIMINATORS
from modeling.pretrained.teachers import build_teacher
from modeling.quantizers import QUANTIZERS
from modeling.quantizers.base import Quantizer
from modeling.tokenizers import TOKENIZERS
from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.vqgan_parts import PixelDecoder


def build_tokenizer(section: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from its section; builds the parts that its class lists first, from sections within it."""
    builder, options = choose("tokenizer", TOKENIZERS, section)
    parts: dict[str, Any] = {}
    for name in builder.parts:  # in this order: a part may read the parts before it
        parts[name] = PARTS[name](options.pop(name, None), parts)
    tokenizer = build("tokenizer", TOKENIZERS, {"name": section["name"], **options}, **parts)
    return _remember(tokenizer, section)


def _quantizer(section: Any, parts: Mapping[str, Any]) -> Quantizer:
    return build("tokenizer.quantizer", QUANTIZERS, _section("quantizer", section))


def _teacher(section: Any, parts: Mapping[str, Any]) -> nn.Module:
    options = check_options("tokenizer.teacher", build_teacher, _section("teacher", section))
    return build_teacher(**options)


def _pixel_decoder(section: Any, parts: Mapping[str, Any]) -> nn.Module | None:
    if section is None:
        return None
    section = {"name": "cnn", **_section("pixel_decoder", section)}
    width = parts["quantizer"].code_dim
    return build("tokenizer.pixel_decoder", {"cnn": PixelDecoder}, section, in_channels=width)


# Parts of tokenizers, each built from its section and the parts before it.
PARTS: dict[str, Callable[[Any, Mapping[str, Any]], nn.Module | None]] = {
    "quantizer": _quantizer,
    "teacher": _teacher,
    "pixel_decoder": _pixel_decoder,
}


def _section(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"tokenizer.{key}={value!r} must be a section with a name")
    return dict(value)


def build_generator(section: Mapping[str, Any], **sizes: int) -> nn.Module:
    """A generator from its section; `sizes` are `codebook_size`, ... where the tokens to learn give them."""
    return _remember(build("generator", GENERATORS, section, **sizes), {**section, **sizes})


def _remember(module: Any, section: Mapping[str, Any]) -> Any:
    module.section = copy.deepcopy(dict(section))  # later changes of the run's options do not reach it
    return module


def build_discriminator(section: Mapping[str, Any]) -> Trainable:
    """A discriminator from its section."""
    return build("discriminator", DISCRIMINATORS, section)
