"""TensorFlow 1's bilinear resize, which every Inception-based metric has inherited.

`align_corners=False` without the half-pixel shift: the grid starts on the first pixel, so the picture moves by up to
half a pixel, and nothing is smoothed before it is made smaller. Any other resize changes the features by 1e-3 to
1e-2 and the metrics with them.
"""

import torch


def tf1_positions(
    length: int, size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the `size` output pixels of one axis of `length` pixels lie.

    Returns `low`, `high` (int64 [size], the two neighbours) and `weight` (`dtype` [size], share of `high`, in [0, 1)).
    """
    scale = torch.tensor(length / size, dtype=torch.float32).to(dtype)  # float32 as in TensorFlow
    positions = torch.arange(size, dtype=dtype) * scale
    low = positions.floor()
    weight = positions - low
    # A rounded product may touch the end of the axis; it must not read beyond it.
    low = low.long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    return low.to(device), high.to(device), weight.to(device)


def resize_tf1(images: torch.Tensor, size: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Resize [B, C, H, W] of any dtype to `dtype` [B, C, size, size]; nothing is rounded to 8 bits.

    In float32 the result is the one of TensorFlow's CPU kernel to the last bit, because the operations and their order
    are the same; float64 is for tools that compute positions and blends in double width.

    Raises:
        ValueError: images are not [B, C, H, W] with at least one pixel, or `size` is below 1.
    """
    height, width = _checked_sides(images, size)
    images = images.to(dtype)
    if (height, width) == (size, size):
        return images
    # Along the width first, left + (right - left) * weight, then along the height.
    left, right, share = tf1_positions(width, size, dtype=dtype, device=images.device)
    start = images[..., left]
    images = start + (images[..., right] - start) * share
    top, bottom, share = tf1_positions(height, size, dtype=dtype, device=images.device)
    start = images[..., top, :]
    return start + (images[..., bottom, :] - start) * share[:, None]


def resize_tf1_rows(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """`resize_tf1` of contiguous float32 [B, H, W, C], several times faster and equal to 5e-5 grey levels."""
    height, width = pixels.shape[1:3]
    if (height, width) == (size, size):
        return pixels
    for axis, length in ((1, height), (2, width)):  # height first: whole rows are read at a time
        low, high, share = tf1_positions(length, size, device=pixels.device)
        share = share.view(-1, *[1] * (3 - axis))
        pixels = torch.lerp(pixels.index_select(axis, low), pixels.index_select(axis, high), share)
    return pixels


def _checked_sides(images: torch.Tensor, size: int) -> tuple[int, int]:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"images have the shape {list(images.shape)}; expected [B, C, H, W] with pixels in it"
        )
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1")
    return images.shape[2], images.shape[3]
