"""Image tokenizers, by the name used in configurations."""

from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.cluster import Cluster
from modeling.tokenizers.magvit2 import MAGVIT2
from modeling.tokenizers.maskgit_vqgan import MaskGITVQGAN
from modeling.tokenizers.tatitok import TATiTok
from modeling.tokenizers.titok import TiTok
from modeling.tokenizers.vqgan import VQGAN
from modeling.tokenizers.vqkd import VQKD

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "titok": TiTok,
    "tatitok": TATiTok,
    "maskgit_vqgan": MaskGITVQGAN,
    "vqgan": VQGAN,
    "magvit2": MAGVIT2,
    "vqkd": VQKD,
    "cluster": Cluster,
}
