"""Generators: label -> tokens. `GENERATORS` maps the names used in configurations to classes."""

from common.registry import Registry

GENERATORS = Registry(
    {
        "rar": "modeling.generators.rar:RAR",
        "maskgit": "modeling.generators.maskgit:MaskGIT",
        "uvit": "modeling.generators.uvit:UViT",
        "gpt": "modeling.generators.gpt:GPT",
        "factorized_ar": "modeling.generators.factorized_ar:FactorizedAR",
        "ibq_ar": "modeling.generators.ibq_ar:IBQTransformer",
    },
    base="modeling.generators.base:Generator",
)
__getattr__ = GENERATORS.class_named
