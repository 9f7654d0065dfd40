"""Sampling from autoregressive generators, one token per step, or one sub-token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling.generators.base import AutoregressiveGenerator
from modeling.sampling.filtering import check_filters, filter_logits
from modeling.sampling.guidance import guide, power_cosine_schedule
from modeling.sampling.settings import per_sub_token
from modeling.token_factors import TokenFactors


def _scale(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    # A function of its own, so that this float64 copy is freed before the sum: otherwise a draw from 64 rows of 1024
    # codes takes six times as long on a CPU.
    scaled = logits.double() / temperature
    return filter_logits(scaled, top_k, top_p) if top_k or top_p < 1 else scaled


def choose_tokens(
    logits: Tensor, temperature: float, uniform: Tensor | None, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Draw from `softmax(filter_logits(logits / temperature))` by inverting its distribution function.

    Args:
        logits: `[B, V]`.
        temperature: 0 takes the most likely token.
        uniform: float64 `[B]` in `[0, 1)`; may be None if the temperature is 0.
        top_k, top_p: see `filter_logits`.

    Returns:
        int64 `[B]`.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # float64: a float32 sum over a large codebook would lose its unlikely tokens.
    cumulative = _scale(logits, temperature, top_k, top_p).softmax(dim=-1).cumsum(dim=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return tokens.clamp_(max=logits.shape[-1] - 1)  # the threshold may be rounded up to the total


@dataclass(frozen=True)
class _Choice:
    """How one sub-token of every token is chosen."""

    weights: list[float]  # of guidance, one per token
    guided: bool
    temperature: float
    top_k: int
    top_p: float

    def __call__(self, logits: Tensor, step: int, rows: int, uniform: Tensor | None) -> Tensor:
        # Unguided, the unconditional half may still be there, because another sub-token is guided.
        logits = guide(logits, self.weights[step]) if self.guided else logits[:rows]
        return choose_tokens(logits, self.temperature, uniform, self.top_k, self.top_p)


def _choices(
    model: AutoregressiveGenerator,
    guidance_scale: float | Sequence[float],
    guidance_power: float,
    **settings: float | Sequence[float],
) -> list[_Choice]:
    """One per sub-token of a token; raises ValueError where a setting is out of range."""
    scales = per_sub_token("guidance_scale", guidance_scale, model.factors)
    columns = [per_sub_token(key, value, model.factors) for key, value in settings.items()]
    choices = []
    for scale, *numbers in zip(scales, *columns, strict=True):
        weights = power_cosine_schedule(model.num_tokens, scale, guidance_power)
        # Scale 0 is "off" and 1 has no effect: neither needs the unconditional half.
        choice = _Choice(weights, scale not in (0, 1), **dict(zip(settings, numbers, strict=True)))
        if choice.temperature < 0:
            raise ValueError(
                f"temperature={choice.temperature} must not be negative (0 takes the most likely token)"
            )
        check_filters(choice.top_k, choice.top_p)
        choices.append(choice)
    return choices


def _check(
    model: AutoregressiveGenerator, labels: Tensor, temperature: float, uniforms: Tensor | None
) -> None:
    if labels.ndim != 1 or labels.shape[0] == 0:
        raise ValueError(f"labels have shape {list(labels.shape)}, expected [B] with B >= 1")
    if uniforms is None:
        if temperature > 0:
            raise ValueError(f"temperature={temperature} needs uniforms; only temperature 0 goes without")
        return
    expected = [labels.shape[0], model.num_tokens * len(model.factors)]
    if list(uniforms.shape) != expected:
        raise ValueError(f"uniforms have shape {list(uniforms.shape)}, expected {expected}")


def sample(
    model: AutoregressiveGenerator,
    labels: Tensor,
    *,
    guidance_scale: float | Sequence[float],
    guidance_power: float,
    temperature: float | Sequence[float],
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    uniforms: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Generate the tokens of one image per label.

    Dropout is off whatever the mode of the model. After the start nothing waits for the device.

    For a generator with G sub-tokens per token, a setting may be a list of G numbers, one per sub-token; a single
    number applies to all of them.

    Args:
        labels: int64 `[B]`, `0 ... num_classes`, on the model's device.
        guidance_scale, guidance_power: see `power_cosine_schedule`; scale 0 switches guidance off.
        temperature: divides the guided logits; 0 takes the most likely token.
        top_k, top_p: which tokens may be drawn, see `filter_logits`; 0 and 1 are off.
        uniforms: `[B, N * G]` in `[0, 1)`, one number per sub-token, those of a token next to each other
            (`sample_uniforms`). Sample b depends on row b alone. May be None if the temperature is 0.
        progress: called as `progress(done, total)` after every token.

    Returns:
        int64 `[B, N]` in raster order, tokens of the whole codebook.

    Raises:
        ValueError: a shape, label or setting is out of range.
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    choices = _choices(model, guidance_scale, guidance_power, **settings)
    _check(model, labels, max(choice.temperature for choice in choices), uniforms)
    guided = any(choice.guided for choice in choices)
    count, rows = len(choices), labels.shape[0]
    with torch.inference_mode():
        everyone = torch.cat([labels, torch.full_like(labels, model.none_label)]) if guided else labels
        session = model.start_decoding(everyone)  # both halves of guidance in one batch
        if uniforms is not None:
            uniforms = uniforms.to(device=labels.device, dtype=torch.float64)
        drawn = labels.new_empty(rows, model.num_tokens * count)
        newest = None
        for call in range(model.num_tokens * count):
            step, place = divmod(call, count)
            logits = session.next_logits(newest).float()
            chosen = choices[place](logits, step, rows, None if uniforms is None else uniforms[:, call])
            drawn[:, call] = chosen
            newest = chosen.repeat(2) if guided else chosen  # both halves go on with the same tokens
            if progress is not None and place == count - 1:
                progress(step + 1, model.num_tokens)
        if count > 1:
            drawn = TokenFactors(model.factors).join(drawn.unflatten(1, (-1, count)))  # [B, N, G] -> [B, N]
    return drawn.clone()  # an ordinary tensor, usable under autograd
