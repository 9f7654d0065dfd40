"""From image files to training and evaluation crops, on Pillow images, with explicit random numbers.

Pillow's resize filters over the whole footprint of an output pixel, so bicubic is antialiased when shrinking.
Pixels stay 8 bit throughout: dividing by 255 is the trainer's first step on the device.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from common.images import flatten, pil_to_tensor
from data.source import CorruptSample

Resize = Literal["shorter_edge", "adm"]


def decode_image(file: Path | bytes, name: str) -> Image.Image:
    """RGB image from a file or its bytes; transparency is composited on white.

    Raises:
        CorruptSample: the bytes are no readable image; ``name`` says which.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return flatten(image)
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # The codec's message may show an object's address, which would make one sample's name differ each time.
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise CorruptSample(name, reason) from error


def resize_shorter_edge(image: Image.Image, size: int) -> Image.Image:
    """Bicubic, antialiased; the shorter edge becomes ``size``, the longer one is rounded down."""
    width, height = image.size
    if min(width, height) == size:
        return image
    if width <= height:
        shape = (size, max(size, int(size * height / width)))
    else:
        shape = (max(size, int(size * width / height)), size)
    return image.resize(shape, Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The evaluation transform: shorter edge to ``size``, then the central square of that side."""
    return _cut_center(resize_shorter_edge(image, size), size)


def adm_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Central square after halving and a bicubic resize, as made for diffusion models (arXiv 2105.05233).

    Both sides are halved with a box filter while the shorter one is at least ``2 * size``.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def train_crop(
    image: Image.Image,
    *,
    resize_edge: int,
    size: int,
    random_crop: bool,
    random_flip: bool,
    rng: np.random.Generator,
) -> Image.Image:
    """The training transform: shorter edge to ``resize_edge``, a square of side ``size``, maybe its mirror image.

    Three random numbers are drawn whichever options are on.
    """
    image = resize_shorter_edge(image, resize_edge)
    across, down, mirror = rng.random(3)
    if random_crop:
        left, top = int(across * (image.width - size + 1)), int(down * (image.height - size + 1))
        image = image.crop((left, top, left + size, top + size))
    else:
        image = _cut_center(image, size)
    if random_flip and mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def ten_crop_side(size: int) -> int:
    """Side of the square image out of which ten crops of side ``size`` are taken."""
    return int(1.1 * size)


def ten_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Ten crops of every image: four corners (top first, left first) and centre, then their mirror images.

    Args:
        images: [B, 3, R, R] with R = ``ten_crop_side(size)``.
        size: side of the crops.

    Returns:
        [B, 10, 3, size, size].
    """
    end = images.shape[-1] - size
    corners = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    five = [images[..., top : top + size, left : left + size] for top, left in corners]
    return torch.stack([*five, *(crop.flip(-1) for crop in five)], dim=1)


class ImageTransform:
    """What image data sets do to a decoded image, from their options.

    Args:
        image_size: side of the result.
        resize_shorter_edge: length given to the shorter edge before the crop; ``image_size`` if None.
        resize: "shorter_edge", or "adm" for ``adm_center_crop``, which takes no random crop.
        random_crop: cut the square at a random place instead of the centre.
        random_flip: mirror half of the images.

    Raises:
        ValueError: sizes or options that do not go together.
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize_shorter_edge: int | None = None,
        resize: Resize = "shorter_edge",
        random_crop: bool = False,
        random_flip: bool = False,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size={image_size} must be at least 1")
        if resize not in ("shorter_edge", "adm"):
            raise ValueError(f"resize={resize!r} is unknown; choose one of ['shorter_edge', 'adm']")
        if resize == "adm" and (random_crop or resize_shorter_edge is not None):
            raise ValueError("resize='adm' takes neither random_crop nor resize_shorter_edge")
        self.image_size = image_size
        self.resize_edge = image_size if resize_shorter_edge is None else resize_shorter_edge
        if self.resize_edge < image_size:
            raise ValueError(
                f"resize_shorter_edge={resize_shorter_edge} is less than image_size={image_size}"
            )
        self.resize = resize
        self.random_crop = random_crop
        self.random_flip = random_flip

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """RGB image -> uint8 [3, image_size, image_size]."""
        if self.resize == "adm":
            image = adm_center_crop(image, self.image_size)
        crop = train_crop(
            image,
            resize_edge=self.resize_edge,
            size=self.image_size,
            random_crop=self.random_crop,
            random_flip=self.random_flip,
            rng=rng,
        )
        return pil_to_tensor(crop)


def _cut_center(image: Image.Image, size: int) -> Image.Image:
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))
