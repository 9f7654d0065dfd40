"""Bottlenecks between encoder and decoder, by the name used in configurations."""

from modeling.quantizers.base import Quantizer
from modeling.quantizers.bsq import BSQ
from modeling.quantizers.ema_vq import EMAVectorQuantizer
from modeling.quantizers.fsq import FSQ
from modeling.quantizers.gaussian import GaussianQuantizer
from modeling.quantizers.ibq import IBQ
from modeling.quantizers.lfq import LFQ
from modeling.quantizers.spherical_vq import SphericalVectorQuantizer
from modeling.quantizers.vq import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "ema_vq": EMAVectorQuantizer,
    "fsq": FSQ,
    "lfq": LFQ,
    "bsq": BSQ,
    "ibq": IBQ,
    "spherical_vq": SphericalVectorQuantizer,
    "vae": GaussianQuantizer,
}
