"""Samplers: draw tokens from a generator. They know the generator contract only, no class."""

from modeling.sampling.autoregressive import choose_tokens, sample, sample_uniforms
from modeling.sampling.guidance import guide, power_cosine_schedule
from modeling.sampling.settings import SamplingSettings

__all__ = ["SamplingSettings", "choose_tokens", "guide", "power_cosine_schedule", "sample", "sample_uniforms"]
