"""Generators: label -> tokens. `GENERATORS` maps the names used in configurations to classes."""

from modeling.generators.base import (
    AutoregressiveGenerator,
    DecodeSession,
    Generator,
    MaskedGenerator,
    drop_labels,
)
from modeling.generators.factorized_ar import FactorizedAR
from modeling.generators.gpt import GPT
from modeling.generators.ibq_ar import IBQTransformer
from modeling.generators.maskgit import MaskGIT
from modeling.generators.masking import mask_counts, mask_ratio, sample_masks
from modeling.generators.orders import permute_tokens, randomness, sample_orders
from modeling.generators.rar import RAR
from modeling.generators.uvit import UViT

GENERATORS: dict[str, type[Generator]] = {
    "rar": RAR,
    "maskgit": MaskGIT,
    "uvit": UViT,
    "gpt": GPT,
    "factorized_ar": FactorizedAR,
    "ibq_ar": IBQTransformer,
}

__all__ = [
    "GENERATORS",
    "GPT",
    "RAR",
    "AutoregressiveGenerator",
    "DecodeSession",
    "FactorizedAR",
    "Generator",
    "IBQTransformer",
    "MaskGIT",
    "MaskedGenerator",
    "UViT",
    "drop_labels",
    "mask_counts",
    "mask_ratio",
    "permute_tokens",
    "randomness",
    "sample_masks",
    "sample_orders",
]
