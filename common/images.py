"""Images as [0, 1] tensors, 8-bit values, grids and files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images in [0, 1] -> uint8, clamped and rounded to the nearest level (any shape)."""
    return images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images -> float32 in [0, 1] (any shape)."""
    return images.float().div(255)


def grid(images: torch.Tensor, columns: int, pad: int = 2, background: float = 1.0) -> torch.Tensor:
    """Images [B, C, H, W] in [0, 1] in rows with borders: [C, rows * (H + pad) + pad, columns * (W + pad) + pad]."""
    images = images.detach().float().cpu()
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)  # rounded up: the last row may be incomplete
    canvas = torch.full((channels, rows * (height + pad) + pad, columns * (width + pad) + pad), background)
    for i, image in enumerate(images):
        top, left = pad + (i // columns) * (height + pad), pad + (i % columns) * (width + pad)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def enlarge(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Repeat every pixel `factor` times in both directions."""
    return images.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB on white.

    Raises:
        FileNotFoundError, ValueError: the file does not exist or is not a readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    try:
        with Image.open(path) as image:
            return flatten(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error


def flatten(image: Image.Image) -> Image.Image:
    """RGB version of a PIL image, transparent parts on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def pil_to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB PIL image -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
