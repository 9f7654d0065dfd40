"""Bottlenecks between encoder and decoder, by the name used in configurations."""

from modeling.quantizers.gaussian import GaussianQuantizer
from modeling.quantizers.output import Quantizer
from modeling.quantizers.vq import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {"vq": VectorQuantizer, "vae": GaussianQuantizer}
