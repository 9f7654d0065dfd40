"""Loss functions and the networks they need, by the name used in configurations."""

from modeling.layers.trainable import Trainable
from modeling.losses.blur_discriminator import BlurDiscriminator
from modeling.losses.discriminators import NLayerDiscriminator
from modeling.losses.patchgan import PatchGAN
from modeling.losses.reconstruction import RECONSTRUCTION_LOSSES
from modeling.losses.stylegan import StyleGANDiscriminator

DISCRIMINATORS: dict[str, type[Trainable]] = {
    "nlayer": NLayerDiscriminator,
    "patchgan": PatchGAN,
    "blur": BlurDiscriminator,
    "stylegan": StyleGANDiscriminator,
}

__all__ = ["DISCRIMINATORS", "RECONSTRUCTION_LOSSES"]
