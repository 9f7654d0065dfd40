"""Generators: label -> tokens. `GENERATORS` maps the names used in configurations to classes."""

from modeling.generators.base import AutoregressiveGenerator, DecodeSession, Generator, drop_labels
from modeling.generators.orders import permute_tokens, randomness, sample_orders
from modeling.generators.rar import RAR

GENERATORS: dict[str, type[Generator]] = {"rar": RAR}

__all__ = [
    "GENERATORS",
    "RAR",
    "AutoregressiveGenerator",
    "DecodeSession",
    "Generator",
    "drop_labels",
    "permute_tokens",
    "randomness",
    "sample_orders",
]
