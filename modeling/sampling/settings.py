"""Settings of samplers; the dataclass fields are the YAML keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.config import option
from modeling.generators.base import Generator
from modeling.sampling.filtering import check_filters
from modeling.sampling.guidance import GUIDANCE_SCHEDULES, guidance_weights

Number = TypeVar("Number", int, float)


def per_sub_token(key: str, value: Number | Sequence[Number], factors: Sequence[int]) -> list[Number]:
    """A setting as one number per sub-token; a single number applies to all of them.

    Raises ValueError, naming `key`, if there are more or fewer numbers than sub-tokens.
    """
    if not isinstance(value, Sequence):
        return [value] * len(factors)
    if len(value) != len(factors):
        raise ValueError(
            f"{key}={list(value)} has {len(value)} numbers, but tokens have G={len(factors)} sub-tokens; expected a"
            f" number or a list of {len(factors)}"
        )
    return list(value)


def _numbers(value: float | Sequence[float]) -> Sequence[float]:
    return value if isinstance(value, Sequence) else [value]


def _refuse_negative(settings: object, *keys: str) -> None:
    for key in keys:
        value = getattr(settings, key)
        if not all(number >= 0 for number in _numbers(value)):  # also refuses NaN
            raise ValueError(f"{key}={value} must not be negative")


@dataclass(kw_only=True)
class SamplingSettings:
    """How tokens are drawn from an autoregressive generator.

    For generators that predict a token in G sub-tokens, all but `guidance_power` may be a list of G numbers, one per
    sub-token; a single number applies to all of them. Raises ValueError if a setting is out of range.
    """

    guidance_scale: float | list[float] = option(4.0, "classifier-free guidance at the last token; 0 = off")
    guidance_power: float = option(1.0, "shape of the rise from 1 to the scale; 0 = constant")
    temperature: float | list[float] = option(1.0, "0 = always the likeliest token")
    top_k: int | list[int] = option(0, "draw from this many likeliest tokens; 0 = from all")
    top_p: float | list[float] = option(
        1.0, "draw from the likeliest tokens that hold this share of the mass; 1 = from all"
    )

    def __post_init__(self) -> None:
        _refuse_negative(self, "guidance_scale", "guidance_power", "temperature")
        for top_k in _numbers(self.top_k):
            check_filters(top_k, 1.0)
        for top_p in _numbers(self.top_p):
            check_filters(0, top_p)

    def numbers_needed(self, generator: Generator) -> int:
        """Random numbers that one sample takes: one per sub-token, none if all temperatures are 0."""
        numbers = {key: per_sub_token(key, value, generator.factors) for key, value in vars(self).items()}
        return generator.num_tokens * len(generator.factors) if any(numbers["temperature"]) else 0


@dataclass(kw_only=True)
class MaskedSamplingSettings:
    """How tokens are drawn from a masked generator; the defaults are those published for TiTok-L-32.

    Raises ValueError if a setting is out of range or unknown.
    """

    num_steps: int = option(8, "forward passes per image")
    guidance_schedule: str = option("linear", f"one of {', '.join(GUIDANCE_SCHEDULES)}")
    guidance_scale: float = option(4.5, "classifier-free guidance; 0 = off")
    guidance_power: float = option(3.0, "shape of the rise of power-cosine")
    temperature: float = option(9.5, "of the noise at the start, falls to 0; 0 = always the likeliest token")
    softmax_annealing: bool = option(True, "sharpen the predictions step by step")

    def __post_init__(self) -> None:
        _refuse_negative(self, "guidance_scale", "guidance_power", "temperature")
        # Refuses num_steps below 1 and unknown schedules.
        guidance_weights(self.guidance_schedule, self.num_steps, self.guidance_scale, self.guidance_power)

    def numbers_needed(self, generator: Generator) -> int:
        """Random numbers that one sample takes; none if the temperature is 0."""
        # Per step and place one for the token and one for the confidence.
        return self.num_steps * 2 * generator.num_tokens if self.temperature else 0
