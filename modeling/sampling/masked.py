"""Sampling from masked generators: all tokens at once, the least certain ones again (arXiv 2202.04200, section 3.2)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modeling.generators.base import MaskedGenerator
from modeling.sampling.guidance import guidance_weights, guide
from modeling.sampling.noise import MaskedNoise


def left_masked(progress: float, unknown_at_start: Tensor, unknown: Tensor) -> Tensor:
    """How many tokens stay masked after a step that is not the last one: `floor(n * arccos(progress) / (pi / 2))`.

    Args:
        progress: share of the steps that are done after this one, in `(0, 1)`.
        unknown_at_start: int64 `[...]`, n.
        unknown: int64 `[...]`, how many tokens were unknown before this step.

    Returns:
        int64 `[...]`.
    """
    share = math.acos(progress) / (math.pi / 2)
    count = (unknown_at_start.double() * share).floor().long()
    return torch.minimum(count, unknown - 1).clamp_(min=1)  # fewer than before: every step makes progress


def least_certain(confidence: Tensor, unknown: Tensor, count: Tensor) -> Tensor:
    """The `count` unknown tokens of a sample with the lowest confidence; ties at the cut-off all belong to them.

    `confidence` and bool `unknown` are `[B, N]`, `count` is int64 `[B]`, at least 1; returns bool `[B, N]`.
    """
    ascending = confidence.masked_fill(~unknown, math.inf).sort(dim=1).values
    cutoff = ascending.gather(1, count[:, None] - 1)
    return unknown & (confidence <= cutoff)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Dropout off; restores the mode of every part, which may differ from the model's."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(
    model: MaskedGenerator,
    labels: Tensor,
    temperature: float,
    noise: MaskedNoise | None,
    known: Tensor | None,
) -> None:
    if labels.ndim != 1 or labels.shape[0] == 0:
        raise ValueError(f"labels have shape {list(labels.shape)}, expected [B] with B >= 1")
    model.check_labels(labels)
    if not temperature >= 0:  # also refuses NaN
        raise ValueError(f"temperature={temperature} must not be negative (0 takes the most likely token)")
    if noise is None and temperature > 0:
        raise ValueError(f"temperature={temperature} needs noise; only temperature 0 goes without")
    if known is None:
        return
    if known.shape != (labels.shape[0], model.num_tokens):
        expected = [labels.shape[0], model.num_tokens]
        raise ValueError(f"known tokens have shape {list(known.shape)}, expected {expected}")
    for token in (int(known.min()), int(known.max())):
        if not 0 <= token <= model.mask_token:
            raise ValueError(f"known token {token} is out of range; choose 0 ... {model.mask_token} (mask)")


def _guided_logits(model: MaskedGenerator, tokens: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Float32 `[B, N, V]`; `labels` are `[2B]`, the second half "no class"."""
    if weight == 1:  # guidance without effect: half the work
        return model(tokens, labels[: tokens.shape[0]]).float()
    return guide(model(tokens.repeat(2, 1), labels).float(), weight)


def sample_masked(
    model: MaskedGenerator,
    labels: Tensor,
    *,
    num_steps: int,
    guidance_schedule: str,
    guidance_scale: float,
    guidance_power: float,
    temperature: float,
    softmax_annealing: bool,
    noise: MaskedNoise | None = None,
    known: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    trace: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Generate the tokens int64 `[B, N]` of one image per label, or those that `known` lacks.

    Every step predicts all masked tokens and keeps the most certain ones: those whose chosen token has the
    largest logit, plus noise. Dropout is off whatever the mode of the model. After the start nothing waits for the
    device.

    Args:
        labels: int64 `[B]`, `0 ... num_classes`, on the model's device.
        guidance_schedule, guidance_scale, guidance_power: see `guidance_weights`; scale 0 is no guidance.
        temperature: of the noise at the start, it falls linearly to 0 at the last step. 0: no noise at all.
        softmax_annealing: sharpen the logits step by step.
        noise: may be None if the temperature is 0.
        known: int64 `[B, N]`, tokens to keep and `mask_token` at the places to fill; None: fill all.
        progress, trace: called as `progress(done, total)` after and `trace(step, tokens)` before every step.

    Raises:
        ValueError: a shape, label, token or setting is out of range.
    """
    weights = guidance_weights(guidance_schedule, num_steps, guidance_scale, guidance_power)
    _check(model, labels, temperature, noise, known)
    with torch.inference_mode(), _evaluation(model):
        rows = torch.cat([labels, torch.full_like(labels, model.none_label)])
        masks = labels.new_full((labels.shape[0], model.num_tokens), model.mask_token)
        tokens = masks if known is None else known.to(masks)
        unknown = tokens == model.mask_token
        unknown_at_start = unknown.sum(dim=1)
        for step, weight in enumerate(weights):
            if trace is not None:
                trace(step, tokens)
            done = (step + 1) / num_steps
            logits = _guided_logits(model, tokens, rows, weight)
            if softmax_annealing:
                logits = logits / (0.5 + 0.8 * (1 - done))  # falls linearly, by 0.8 in all, to 0.5
            heat = temperature * (1 - done)  # 0 in the last step
            chosen = noise.choose(logits, heat, step) if heat > 0 else logits.argmax(dim=-1)
            tokens = torch.where(unknown, chosen, tokens)
            if step + 1 < num_steps:
                confidence = logits.gather(-1, chosen[..., None])[..., 0]  # logit of the chosen token, [B, N]
                if heat > 0:
                    confidence = confidence + heat * noise.confidence(step).to(confidence)
                count = left_masked(done, unknown_at_start, unknown.sum(dim=1))
                unknown = least_certain(confidence, unknown, count)
                tokens = torch.where(unknown, masks, tokens)
            if progress is not None:
                progress(step + 1, num_steps)
    return tokens.clone()  # an ordinary tensor, usable under autograd
