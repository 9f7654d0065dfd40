"""What a training step does with a quantizer."""

import torch

from modeling.quantizers.base import Quantizer, QuantizerOutput


def step(quantizer: Quantizer, latents: torch.Tensor) -> QuantizerOutput:
    """A forward pass, from a started codebook, and the move of the codes after it."""
    if not quantizer.codebook_started:
        quantizer.start_codebook(latents.detach())
    output = quantizer(latents)
    quantizer.update_codebook(latents.detach(), output.tokens)
    return output
