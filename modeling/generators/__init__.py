"""Generators: label -> tokens. `GENERATORS` maps the names used in configurations to classes."""

from modeling.generators.base import Generator
from modeling.generators.factorized_ar import FactorizedAR
from modeling.generators.gpt import GPT
from modeling.generators.ibq_ar import IBQTransformer
from modeling.generators.maskgit import MaskGIT
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
