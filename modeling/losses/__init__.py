"""Loss functions and the networks they need: `DISCRIMINATORS` maps the names used in configurations to classes."""

from common.registry import Registry

DISCRIMINATORS = Registry(
    {
        "nlayer": "modeling.losses.discriminators:NLayerDiscriminator",
        "patchgan": "modeling.losses.patchgan:PatchGAN",
        "blur": "modeling.losses.blur_discriminator:BlurDiscriminator",
        "stylegan": "modeling.losses.stylegan:StyleGANDiscriminator",
    }
)
__getattr__ = DISCRIMINATORS.class_named
