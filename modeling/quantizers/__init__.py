"""Bottlenecks between encoder and decoder: `QUANTIZERS` maps the names used in configurations to classes."""

from common.registry import Registry

QUANTIZERS = Registry(
    {
        "vq": "modeling.quantizers.vq:VectorQuantizer",
        "ema_vq": "modeling.quantizers.ema_vq:EMAVectorQuantizer",
        "fsq": "modeling.quantizers.fsq:FSQ",
        "lfq": "modeling.quantizers.lfq:LFQ",
        "bsq": "modeling.quantizers.bsq:BSQ",
        "ibq": "modeling.quantizers.ibq:IBQ",
        "spherical_vq": "modeling.quantizers.spherical_vq:SphericalVectorQuantizer",
        "vae": "modeling.quantizers.gaussian:GaussianQuantizer",
    },
    base="modeling.quantizers.base:Quantizer",
)
__getattr__ = QUANTIZERS.class_named
