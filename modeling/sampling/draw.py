"""Drawing tokens from a generator of any kind."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from common.build import build_dataclass
from modeling.generators.base import AutoregressiveGenerator, Generator, MaskedGenerator
from modeling.sampling.autoregressive import sample
from modeling.sampling.foreign_keywords import refuse_foreign
from modeling.sampling.masked import sample_masked
from modeling.sampling.noise import SampleNoise
from modeling.sampling.settings import MaskedSamplingSettings, SamplingSettings

Settings = SamplingSettings | MaskedSamplingSettings


def _autoregressive(
    generator: AutoregressiveGenerator,
    labels: Tensor,
    uniforms: Tensor | None,
    settings: SamplingSettings,
    *,
    trace: Callable[[int, Tensor], None] | None,
    **options: Any,
) -> Tensor:
    if trace is not None:
        raise ValueError(f"trace is for masked generators, not for a {type(generator).__name__}")
    return sample(generator, labels, **vars(settings), uniforms=uniforms, **options)


def _masked(
    generator: MaskedGenerator,
    labels: Tensor,
    uniforms: Tensor | None,
    settings: MaskedSamplingSettings,
    **options: Any,
) -> Tensor:
    noise = None
    if uniforms is not None:  # per step and place one number for the token and one for the confidence
        noise = SampleNoise(uniforms.unflatten(1, (settings.num_steps, 2, generator.num_tokens)))
    return sample_masked(generator, labels, **vars(settings), noise=noise, **options)


# By `Generator.kind`: the settings, and the function that draws.
_SAMPLERS: dict[str, tuple[type[Settings], Callable[..., Tensor]]] = {
    "autoregressive": (SamplingSettings, _autoregressive),
    "masked": (MaskedSamplingSettings, _masked),
}


def _sampler(generator: Generator) -> tuple[type[Settings], Callable[..., Tensor]]:
    if generator.kind not in _SAMPLERS:
        name, kinds = type(generator).__name__, " or ".join(_SAMPLERS)
        raise ValueError(f"cannot sample from a {name}: its kind is {generator.kind!r}, expected {kinds}")
    return _SAMPLERS[generator.kind]


def settings_type(generator: Generator) -> type[Settings]:
    """The dataclass of the settings that `draw` takes for this generator.

    Raises ValueError if there is no sampler for this kind of generator.
    """
    return _sampler(generator)[0]


def settings_for(generator: Generator, given: Mapping[str, Any]) -> Settings:
    """The settings of a generator: `given`, then what it was loaded with (`Generator.sampling`), then defaults.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range; keywords of other programs get their
            translation.
    """
    kind = settings_type(generator)
    refuse_foreign(given, generator.kind)
    return build_dataclass(kind, {**generator.sampling, **given}, "sampling")


def numbers_needed(generator: Generator, settings: Settings) -> int:
    """Random numbers that one sample takes; none if the temperature is 0.

    Raises ValueError if the settings do not fit the generator.
    """
    expected = settings_type(generator)
    if not isinstance(settings, expected):
        raise ValueError(
            f"a {type(generator).__name__} takes {expected.__name__}, not {type(settings).__name__}"
        )
    return settings.numbers_needed(generator)


def draw(
    generator: Generator,
    labels: Tensor,
    uniforms: Tensor | None,
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
    trace: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Generate the tokens of one image per label.

    Args:
        labels: int64 `[B]`, `0 ... num_classes`, on the generator's device.
        uniforms: float64 `[B, numbers_needed]` in `[0, 1)` (`sample_uniforms`, `generator_uniforms`). Sample b
            depends on row b alone. May be None if no numbers are needed.
        settings: of the type that `settings_type` names.
        progress: called as `progress(done, total)` after every step.
        trace: masked generators only: called as `trace(step, tokens)` with the input `[B, N]` of every step.

    Returns:
        int64 `[B, N]`.

    Raises:
        ValueError: a shape, label or setting is out of range, or of the wrong kind.
    """
    count = numbers_needed(generator, settings)
    if count == 0:
        uniforms = None
    elif uniforms is None or uniforms.shape != (labels.shape[0], count):
        found = None if uniforms is None else list(uniforms.shape)
        raise ValueError(f"uniforms have shape {found}, expected {[labels.shape[0], count]}")
    else:
        uniforms = uniforms.to(device=labels.device, dtype=torch.float64)
    sampler = _sampler(generator)[1]
    return sampler(generator, labels, uniforms, settings, progress=progress, trace=trace)
