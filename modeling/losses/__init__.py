"""Loss functions and the networks they need, by the name used in configurations."""

from torch import nn

from modeling.losses.discriminators import NLayerDiscriminator
from modeling.losses.reconstruction import RECONSTRUCTION_LOSSES

DISCRIMINATORS: dict[str, type[nn.Module]] = {"nlayer": NLayerDiscriminator}

__all__ = ["DISCRIMINATORS", "RECONSTRUCTION_LOSSES"]
