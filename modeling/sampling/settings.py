"""Settings of samplers; the dataclass fields are the YAML keys."""

from dataclasses import dataclass

from common.config import option
from modeling.sampling.filtering import check_filters
from modeling.sampling.guidance import GUIDANCE_SCHEDULES


def _refuse_negative(settings: object, *keys: str) -> None:
    for key in keys:
        value = getattr(settings, key)
        if not value >= 0:  # also refuses NaN
            raise ValueError(f"{key}={value} must not be negative")


@dataclass(kw_only=True)
class SamplingSettings:
    """How tokens are drawn from an autoregressive generator.

    Raises:
        ValueError: a setting is out of range.
    """

    guidance_scale: float = option(4.0, "classifier-free guidance at the last token; 0 = off")
    guidance_power: float = option(1.0, "shape of the rise from 1 to the scale; 0 = constant")
    temperature: float = option(1.0, "0 = always the likeliest token")
    top_k: int = option(0, "draw from this many likeliest tokens; 0 = from all")
    top_p: float = option(
        1.0, "draw from the likeliest tokens that hold this share of the mass; 1 = from all"
    )

    def __post_init__(self) -> None:
        _refuse_negative(self, "guidance_scale", "guidance_power", "temperature")
        check_filters(self.top_k, self.top_p)


@dataclass(kw_only=True)
class MaskedSamplingSettings:
    """How tokens are drawn from a masked generator; the defaults are those published for TiTok-L-32.

    Raises:
        ValueError: a setting is out of range or unknown.
    """

    num_steps: int = option(8, "forward passes per image")
    guidance_schedule: str = option("linear", f"one of {', '.join(GUIDANCE_SCHEDULES)}")
    guidance_scale: float = option(4.5, "classifier-free guidance; 0 = off")
    guidance_power: float = option(3.0, "shape of the rise of power-cosine")
    temperature: float = option(9.5, "of the noise at the start, falls to 0; 0 = always the likeliest token")
    softmax_annealing: bool = option(True, "sharpen the predictions step by step")

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1")
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            choices = ", ".join(GUIDANCE_SCHEDULES)
            raise ValueError(f"guidance_schedule={self.guidance_schedule!r} is unknown; choose {choices}")
        _refuse_negative(self, "guidance_scale", "guidance_power", "temperature")
