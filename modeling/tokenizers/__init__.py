"""Image tokenizers: `TOKENIZERS` maps the names used in configurations to classes."""

from common.registry import Registry

TOKENIZERS = Registry(
    {
        "titok": "modeling.tokenizers.titok:TiTok",
        "tatitok": "modeling.tokenizers.tatitok:TATiTok",
        "maskgit_vqgan": "modeling.tokenizers.maskgit_vqgan:MaskGITVQGAN",
        "vqgan": "modeling.tokenizers.vqgan:VQGAN",
        "magvit2": "modeling.tokenizers.magvit2:MAGVIT2",
        "vqkd": "modeling.tokenizers.vqkd:VQKD",
        "cluster": "modeling.tokenizers.cluster:Cluster",
    },
    base="modeling.tokenizers.base:Tokenizer",
)
__getattr__ = TOKENIZERS.class_named
