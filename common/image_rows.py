"""Grids of images with a name before each row."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from common.images import enlarge, grid, pil_to_tensor, to_float

GRID_ROWS, GRID_COLUMNS, GRID_SIDE = 20, 8, 96
_PAD = 2


def named_rows(images: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Images [len(names) * columns, 3, S, S] in [0, 1] as one, float [3, h, w]: a row per name, which stands left."""
    columns = len(images) // len(names)
    picture = grid(images, columns, pad=_PAD)
    side = images.shape[-1]
    font = ImageFont.load_default(size=max(10, min(24, side // 5)))
    width = int(max(font.getlength(name) for name in names)) + 12  # 6 pixels on both sides
    margin = Image.new("RGB", (width, picture.shape[1]), "white")
    draw = ImageDraw.Draw(margin)
    for row, name in enumerate(names):
        middle = _PAD + row * (side + _PAD) + side // 2
        draw.text((width - 6, middle), name, fill="black", font=font, anchor="rm")
    return torch.cat([pil_to_tensor(margin).float() / 255, picture], dim=2)


def class_rows(image: Callable[[int], torch.Tensor], count: int, class_names: Sequence[str]) -> torch.Tensor:
    """The first samples of the first classes, a row per class, small ones enlarged: float [3, h, w].

    `image(i)` gives sample i of `count`, uint8 [3, S, S], of class i % len(class_names).
    """
    names = class_names[: min(GRID_ROWS, count)]
    columns = min(GRID_COLUMNS, max(1, count // len(class_names)))
    indices = [row + k * len(class_names) for row in range(len(names)) for k in range(columns)]
    images = to_float(torch.stack([image(i) for i in indices]))
    return named_rows(enlarge(images, max(1, GRID_SIDE // images.shape[-1])), names)
