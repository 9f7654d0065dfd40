"""Settings of samplers; the dataclass fields are the YAML keys."""

from dataclasses import dataclass

from common.config import option


@dataclass(kw_only=True)
class SamplingSettings:
    """How tokens are drawn from an autoregressive generator.

    Raises:
        ValueError: a setting is negative.
    """

    guidance_scale: float = option(4.0, "classifier-free guidance at the last token; 0 = off")
    guidance_power: float = option(1.0, "shape of the rise from 1 to the scale; 0 = constant")
    temperature: float = option(1.0, "0 = always the likeliest token")

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{key}={value} must not be negative")
