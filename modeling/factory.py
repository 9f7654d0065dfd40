"""Modules from YAML sections: nested parts are built first and handed over ready-made.

Tokenizers and generators keep their section as attribute `section`, so that they can be saved with it.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from common.build import ConfigError, build, check_options, choose
from modeling.generators import GENERATORS
from modeling.losses import DISCRIMINATORS
from modeling.pretrained.teachers import build_teacher
from modeling.quantizers import QUANTIZERS
from modeling.tokenizers import TOKENIZERS
from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.vqgan_parts import PixelDecoder


def build_tokenizer(section: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from its section; parts that it takes ready-made are sections of their own within it.

    These are `quantizer`, and for tokenizers of features `teacher` (a network of timm) and `pixel_decoder`.

    Raises:
        ConfigError: see `common.build.build`.
    """
    builder, options = choose("tokenizer", TOKENIZERS, section)
    taken = inspect.signature(builder).parameters
    parts: dict[str, Any] = {}
    if "quantizer" in taken:
        quantizer = _section(options, "quantizer")
        parts["quantizer"] = build("tokenizer.quantizer", QUANTIZERS, quantizer)
    if "teacher" in taken:
        teacher = _section(options, "teacher")
        parts["teacher"] = build_teacher(**check_options("tokenizer.teacher", build_teacher, teacher))
    if "pixel_decoder" in taken and options.get("pixel_decoder") is not None:
        decoder = {"name": "cnn", **_section(options, "pixel_decoder")}
        width = parts["quantizer"].code_dim
        parts["pixel_decoder"] = build(
            "tokenizer.pixel_decoder", {"cnn": PixelDecoder}, decoder, in_channels=width
        )
    tokenizer = build("tokenizer", TOKENIZERS, {"name": section["name"], **options}, **parts)
    return _remember(tokenizer, section)


def _section(options: dict[str, Any], key: str) -> dict[str, Any]:
    value = options.pop(key, None)
    if not isinstance(value, Mapping):
        raise ConfigError(f"tokenizer.{key}={value!r} must be a section with a name")
    return dict(value)


def build_generator(section: Mapping[str, Any], **sizes: int) -> nn.Module:
    """A generator from its section.

    Args:
        section: name and options.
        **sizes: `codebook_size`, `num_tokens` and `num_classes` where they come from the tokens it learns.
    """
    return _remember(build("generator", GENERATORS, section, **sizes), {**section, **sizes})


def _remember(module: Any, section: Mapping[str, Any]) -> Any:
    module.section = copy.deepcopy(dict(section))
    return module


def build_discriminator(section: Mapping[str, Any]) -> nn.Module:
    """A discriminator from its section."""
    return build("discriminator", DISCRIMINATORS, section)
