"""What callers of `modeling.pipeline` give, checked before any work; values are read, which may wait for the device."""

import math
from collections.abc import Sequence

import torch

from modeling.generators.base import Generator
from modeling.tokenizers.base import Tokenizer, described

ROUNDING = 0.5 / 255  # by which pixels may leave [0, 1]: half of an 8-bit level


def checked_images(tokenizer: Tokenizer, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images as float32 [B, 3, H, W] on a device; ValueError if they are none, outside [0, 1], or do not fit."""
    tokenizer.check_images(images)
    images = images.to(device, torch.float32)
    low, high = torch.stack(images.aminmax()).tolist() if images.numel() else (0.0, 1.0)
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:  # refuses NaN, too
        hint = ""
        if math.isfinite(low) and math.isfinite(high):
            hint = "; clamp what a resize overshot" if low > -0.5 and high < 1.5 else "; scale them to [0, 1]"
        raise ValueError(f"images have values from {low:g} to {high:g}, expected 0 ... 1{hint}")
    return images


def checked_tokens(tokenizer: Tokenizer, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens as int64, or latents as they are; ValueError for another type or shape, and for what is no code."""
    tokenizer.check_tokens(tokens)
    if not tokenizer.is_discrete:
        return tokens
    tokens = tokens.long()
    low, high = torch.stack(tokens.aminmax()).tolist() if tokens.numel() else (0, 0)
    if low < 0 or high >= tokenizer.codebook_size:
        raise ValueError(f"tokens from {low} to {high}, expected 0 ... {tokenizer.codebook_size - 1}")
    return tokens


def checked_labels(generator: Generator, labels: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """Labels as int64 [B]; ValueError for others than exact integers in range: a rounded label is another class."""
    expected = (
        f"expected integers [B] of 0 ... {generator.num_classes - 1}, or {generator.none_label} for no class"
    )
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels={labels!r} are no numbers, {expected}") from error
    if not given.numel():
        given = given.long()  # of an empty list, torch makes floats
    if given.ndim != 1 or given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        raise ValueError(f"labels are {described(given)}, {expected}")
    given = given.long()
    if len(given):
        generator.check_labels(given)
    return given


def require_batch_size(batch_size: int) -> None:
    """Raise ValueError for a batch size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")


def one_at_least(batch: torch.Tensor) -> torch.Tensor:
    """A batch, or a single example of zeros in place of an empty one, which networks do not take."""
    return batch if len(batch) else batch.new_zeros(1, *batch.shape[1:])
