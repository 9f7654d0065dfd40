"""Samplers: draw tokens from a generator. They know the generator contracts only, no class."""

from modeling.sampling.autoregressive import choose_tokens, sample, sample_uniforms
from modeling.sampling.draw import draw, generator_uniforms, numbers_needed, settings_type
from modeling.sampling.filtering import check_filters, filter_logits
from modeling.sampling.guidance import GUIDANCE_SCHEDULES, guidance_weights, guide, power_cosine_schedule
from modeling.sampling.masked import least_certain, left_masked, sample_masked
from modeling.sampling.noise import MaskedNoise, SampleNoise, gumbel
from modeling.sampling.settings import MaskedSamplingSettings, SamplingSettings

__all__ = [
    "GUIDANCE_SCHEDULES",
    "MaskedNoise",
    "MaskedSamplingSettings",
    "SampleNoise",
    "SamplingSettings",
    "check_filters",
    "choose_tokens",
    "draw",
    "filter_logits",
    "generator_uniforms",
    "gumbel",
    "guidance_weights",
    "guide",
    "least_certain",
    "left_masked",
    "numbers_needed",
    "power_cosine_schedule",
    "sample",
    "sample_masked",
    "sample_uniforms",
    "settings_type",
]
