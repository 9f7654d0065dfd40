"""Keywords of samplers by which other programs call our settings, and what they are called here.

The original code of TiTok and RAR and its YAML files (docs/original_configs.md); the scripts of LlamaGen and
Open-MAGVIT2.
"""

from collections.abc import Mapping
from typing import Any, Literal

from common.build import ConfigError

_ORIGINAL, _CFG = "the original code", "LlamaGen and Open-MAGVIT2"
# Theirs -> ours, and by whom. Values keep their meaning, unless `_values` says otherwise.
FOREIGN = {
    "guidance_scale_pow": ("guidance_power", _ORIGINAL),
    "guidance_decay": ("guidance_schedule", _ORIGINAL),
    "randomize_temperature": ("temperature", _ORIGINAL),
    "softmax_temperature_annealing": ("softmax_annealing", _ORIGINAL),
    "num_sample_steps": ("num_steps", _ORIGINAL),
    "cfg_scale": ("guidance_scale", _CFG),
}
_MASKED_ONLY = ("softmax_annealing", "num_steps")


def refuse_foreign(given: Mapping[str, Any], kind: Literal["autoregressive", "masked"] | None = None) -> None:
    """Raise ConfigError for keywords of other programs, with what to write in their place.

    Args:
        given: settings by name.
        kind: of the generator; None if it is not known yet.
    """
    answers = [_answer(key, value, kind) for key, value in given.items() if key in FOREIGN]
    if answers:
        raise ConfigError("; ".join(answers))


def _answer(key: str, value: Any, kind: str | None) -> str:
    ours, program = FOREIGN[key]
    head = f"{key}={value} is a keyword of {program}"
    if key == "cfg_scale":
        return f"{head}; write {_constant_guidance(value, kind)}"
    if kind == "autoregressive" and ours in _MASKED_ONLY:
        return f"{head} without effect on this generator, which draws one token after the other; leave it out"
    if key == "guidance_decay" and kind != "masked":
        masked = "" if kind else f"write guidance_schedule={value} for a masked generator; for others "
        return f"{head}; {masked}{_raster_schedule(value)}"
    return f"{head}; write {ours}={value}"


def _constant_guidance(value: Any, kind: str | None) -> str:
    """The same guidance for all tokens; that of masked generators comes on top of the conditional logits."""
    if kind == "masked" and isinstance(value, (int, float)):
        return f"guidance_scale={value - 1:g}, guidance_schedule=constant"
    return f"guidance_scale={value}, guidance_power=0"


def _raster_schedule(value: Any) -> str:
    """What `guidance_decay` means for autoregressive generators, which have no choice of schedules here."""
    if value == "constant":
        return "write guidance_power=0"
    if value == "power-cosine":
        return "leave it out: autoregressive generators guide so, by guidance_power"
    return "leave it out: autoregressive generators know power-cosine (guidance_power) and constant (guidance_power=0)"
