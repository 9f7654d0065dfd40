"""Modules from YAML sections: nested parts are built first and handed over ready-made.

Tokenizers and generators keep their section as attribute `section`, so that they can be saved with it.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from common.build import ConfigError, build, choose
from modeling.generators import GENERATORS
from modeling.losses import DISCRIMINATORS
from modeling.quantizers import QUANTIZERS
from modeling.tokenizers import TOKENIZERS
from modeling.tokenizers.base import Tokenizer


def build_tokenizer(section: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from its section; `quantizer` in it, where the tokenizer takes one, is a section of its own.

    Raises:
        ConfigError: see `common.build.build`.
    """
    builder, options = choose("tokenizer", TOKENIZERS, section)
    if "quantizer" not in inspect.signature(builder).parameters:
        return _remember(build("tokenizer", TOKENIZERS, section), section)
    quantizer = options.pop("quantizer", None)
    if not isinstance(quantizer, Mapping):
        raise ConfigError(f"tokenizer.quantizer={quantizer!r} must be a section with a name")
    part = build("tokenizer.quantizer", QUANTIZERS, quantizer)
    tokenizer = build("tokenizer", TOKENIZERS, {"name": section["name"], **options}, quantizer=part)
    return _remember(tokenizer, section)


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
