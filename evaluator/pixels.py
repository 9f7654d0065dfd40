"""What counts as images at every door of the evaluator; everything else is refused with what was found.

A float set in [-1, 1] or in 0 ... 255 would otherwise be clamped, and its numbers would look like those of a bad model.
"""

import numpy as np
import torch

# Float values this far outside [0, 1] still become the first or the last of the 256 levels.
HALF_A_LEVEL = 0.5 / 255
CLAMP = "clamp what a decoder gives to [0, 1]"


def require_images(images: torch.Tensor, what: str = "images") -> None:
    """Raise ValueError unless a tensor is [B, 3, H, W], uint8, or float in [0, 1]; the message shows what it holds."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"{what} have shape {list(images.shape)}, expected [B, 3, H, W]{_tensor_hint(images.shape)}"
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(f"{what} are torch.{kind}, expected uint8, or float in [0, 1]")
    if not images.numel():
        return
    low, high = torch.stack(images.detach().aminmax()).float().tolist()  # a single NaN makes both NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{what} hold values that are not finite")
    if low < -HALF_A_LEVEL or high > 1 + HALF_A_LEVEL:
        raise ValueError(
            f"{what} are float values from {low:.4g} to {high:.4g}, expected [0, 1]; {_range_hint(low, high)}"
        )


def _tensor_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[3] == 3:
        return "; the channels are last: images.permute(0, 3, 1, 2)"
    if len(shape) == 3 and shape[0] == 3:
        return "; for one image images[None]"
    if len(shape) == 4 and shape[1] in (1, 4):
        return "; repeat a grey channel three times" if shape[1] == 1 else "; composite or drop alpha"
    return ""


def _range_hint(low: float, high: float) -> str:
    if low >= -HALF_A_LEVEL and 2 < high <= 255:
        return "levels of 8 bits are given as uint8, or divided by 255"
    if low >= -1 - HALF_A_LEVEL and high <= 1 + HALF_A_LEVEL:
        return f"images in [-1, 1] are mapped by x / 2 + 0.5; {CLAMP}"
    return CLAMP


def array_problem(
    shape: tuple[int, ...], dtype: np.dtype, fortran: bool, first: np.ndarray | None = None
) -> str | None:
    """What keeps an array from being images uint8 [N, H, W, 3] in C order, and what to do about it; None if it is.

    `first` holds some of its values.
    """
    if dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and not fortran and 0 not in shape:
        return None
    order = "Fortran" if fortran else "C"
    hints = [_layout_hint(shape), "" if dtype == np.uint8 else _values_hint(dtype, first)]
    if fortran:
        hints.append("numpy.ascontiguousarray gives C order")
    found = f"{dtype} {list(shape)} in {order} order, expected uint8 [N, H, W, 3] in C order"
    return "; ".join(filter(None, [found, *hints]))


def _layout_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[3] == 3:
        return ""
    if len(shape) == 4 and shape[1] in (1, 3, 4):
        return "the channels come before the pixels: array.transpose(0, 2, 3, 1)"
    if len(shape) == 4 and shape[3] == 4:
        return "composite or drop alpha, the fourth channel"
    if len(shape) == 3 and shape[2] == 3:
        return "one image is array[None]"
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        return "grey images are repeated three times along a last axis"
    return ""


def _values_hint(dtype: np.dtype, first: np.ndarray | None) -> str:
    if first is None or not first.size or dtype.kind not in "fiu":
        return ""
    low, high = float(first.min()), float(first.max())
    seen = f"its first values go from {low:.4g} to {high:.4g}"
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{seen}: not finite"
    if low >= 0 and high > 1:
        return f"{seen}: levels from 0 to 255 are stored by array.round().astype('uint8')"
    if low >= 0:
        return f"{seen}: values in [0, 1] are stored by (255 * array).round().astype('uint8')"
    return f"{seen}: values in [-1, 1] are stored by (127.5 * array + 127.5).clip(0, 255).round().astype('uint8')"
