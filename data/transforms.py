"""From image files to training and evaluation crops, on Pillow images, with explicit random numbers.

Pillow's resize filters over the whole footprint of an output pixel, so bicubic and bilinear are antialiased when
shrinking; `bilinear_aliased`, which looks at four pixels at any scale, is ours. Pixels stay 8 bit throughout: dividing
by 255 is the trainer's first step on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image

from common.choices import Alpha, Orientation, Resize
from common.images import PixelRules, UnreadableImage, decode, pil_to_tensor
from data.source import CorruptSample

MOST_PIXELS, MOST_PARTS = (
    2**24,
    16,
)  # of a resized image: in all, and how many times those of the part cut out of it
LOG_ASPECTS = (-math.log(4 / 3), math.log(4 / 3))


def decode_image(file: Path | bytes, name: str, rules: PixelRules | None = None) -> Image.Image:
    """RGB image from a file or its bytes, read as ``rules`` say.

    Raises:
        CorruptSample: the bytes are no readable image; ``name`` says which.
    """
    try:
        return decode(file, rules).image
    except UnreadableImage as error:
        raise CorruptSample(name, str(error)) from error


def resized_shape(size: tuple[int, int], edge: int, resize: Resize = "shorter_edge") -> tuple[int, int]:
    """(width, height) of an image of that ``size`` when its shorter edge becomes ``edge``."""
    width, height = size
    longer = edge * max(size) / min(size)
    longer = max(edge, round(longer) if resize == "bilinear_aliased" else int(longer))
    return (edge, longer) if width <= height else (longer, edge)


def resize_shorter_edge(image: Image.Image, size: int, resize: Resize = "shorter_edge") -> Image.Image:
    """The shorter edge becomes ``size``.

    "shorter_edge" is bicubic and antialiased, "bilinear" antialiased too; both round the longer edge down.
    "bilinear_aliased" is ``resize_aliased`` and takes the nearest whole length of the longer edge.
    """
    shape = resized_shape(image.size, size, resize)
    return resized_part(image, shape, (0, 0, *shape), resize)


def resized_part(
    image: Image.Image, shape: tuple[int, int], box: tuple[int, int, int, int], resize: Resize
) -> Image.Image:
    """The part (left, top, right, bottom) of an image resized to (width, height) ``shape``.

    The whole is resized and cut. Where that would take far more pixels than the part has, only those of the part are
    computed: a picture of 30000 x 1 pixels is 7,680,000 x 256 before a square is cut out of it. The result is the same
    up to the rounding between Pillow's two passes, rows and columns, whose order depends on the sizes.
    """
    if min(image.size) == min(shape) and resize != "adm":
        return image.crop(box)
    if resize == "bilinear_aliased":
        return resize_aliased(image, shape, box)
    method = Image.Resampling.BILINEAR if resize == "bilinear" else Image.Resampling.BICUBIC
    part = (box[2] - box[0], box[3] - box[1])
    if shape[0] * shape[1] <= max(MOST_PIXELS, MOST_PARTS * part[0] * part[1]):
        return image.resize(shape, method).crop(box)
    # Pillow holds a box in float32, so it is given within a window: small numbers, and pixels around for the filter.
    ends = []
    for length, size, start, end in zip(image.size, shape, box[:2], box[2:], strict=True):
        scale = length / size
        reach = (
            math.ceil(2 * max(scale, 1)) + 1
        )  # bicubic takes two pixels on either side, more when it shrinks
        first, last = max(0, int(start * scale) - reach), min(length, math.ceil(end * scale) + reach)
        ends.append((first, last, start * scale - first, min(end * scale, length) - first))
    (left, right, *across), (top, bottom, *down) = ends
    window = image.crop((left, top, right, bottom))
    return window.resize(part, method, box=(across[0], down[0], across[1], down[1]))


def resize_aliased(
    image: Image.Image, shape: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """Bilinear between the four nearest pixels, however much the image shrinks, to (width, height) ``shape``.

    This is OpenCV's INTER_LINEAR, which computes with fixed-point weights: that moves a value by a level at most.
    With a ``box`` (left, top, right, bottom), only that part of the result is computed.
    """
    box = box or (0, 0, *shape)
    rows, columns = (
        # Centres of pixels lie at halves; edges are continued.
        ((np.arange(box[axis], box[axis + 2]) + 0.5) * (image.size[axis] / shape[axis]) - 0.5).clip(
            0, image.size[axis] - 1
        )
        for axis in (1, 0)
    )
    first = int(columns[0])
    pixels = np.asarray(image.crop((first, 0, min(image.width, int(columns[-1]) + 2), image.height)))
    for axis, places in enumerate((rows, columns - first)):
        low = places.astype(np.int64)
        share = (places - low).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        start = pixels.take(low, axis).astype(np.float32)
        pixels = start + (pixels.take((low + 1).clip(max=pixels.shape[axis] - 1), axis) - start) * share
    return Image.fromarray(np.rint(pixels).astype(np.uint8))  # rounded to 8 bit once


def center_crop(image: Image.Image, size: int, resize: Resize = "shorter_edge") -> Image.Image:
    """The evaluation transform: shorter edge to ``size``, then the central square of that side."""
    shape = resized_shape(image.size, size, resize)
    return resized_part(image, shape, _center(shape, size), resize)


def adm_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Central square after halving and a bicubic resize, as made for diffusion models (arXiv 2105.05233).

    Both sides are halved with a box filter while the shorter one is at least ``2 * size``.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    return resized_part(image, shape, (left, top, left + size, top + size), "adm")


# Central crops of side `size`, by the name of the resize before them.
CROPS: Mapping[str, Callable[[Image.Image, int], Image.Image]] = {
    "shorter_edge": center_crop,
    "adm": adm_center_crop,
    "bilinear": partial(center_crop, resize="bilinear"),
    "bilinear_aliased": partial(center_crop, resize="bilinear_aliased"),
}


def train_crop(
    image: Image.Image,
    *,
    resize_edge: int,
    size: int,
    random_crop: bool,
    random_flip: bool,
    rng: np.random.Generator,
    resize: Resize = "shorter_edge",
) -> Image.Image:
    """The training transform: shorter edge to ``resize_edge``, a square of side ``size``, maybe its mirror image."""
    shape = resized_shape(image.size, resize_edge, resize)
    across, down, mirror = rng.random(3)  # three, whichever options are on
    if random_crop:
        left, top = int(across * (shape[0] - size + 1)), int(down * (shape[1] - size + 1))
        box = (left, top, left + size, top + size)
    else:
        box = _center(shape, size)
    image = resized_part(image, shape, box, resize)
    if random_flip and mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def area_crop(
    image: Image.Image, size: int, least: float, random_flip: bool, rng: np.random.Generator
) -> Image.Image:
    """The training transform of classifiers (arXiv 1409.4842): a random part of the image, resized to a square.

    Its area is a share of the image between ``least`` and 1, its width 3/4 to 4/3 of its height; where ten draws give
    none that fits inside, it is the largest central part of such a shape.
    """
    width, height = image.size
    across, down, mirror = rng.random(3)
    for _ in range(10):
        area = width * height * rng.uniform(least, 1.0)
        aspect = math.exp(rng.uniform(*LOG_ASPECTS))  # 3:4 as often as 4:3
        part = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part[0] <= width and 0 < part[1] <= height:
            left, top = int(across * (width - part[0] + 1)), int(down * (height - part[1] + 1))
            break
    else:
        part = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - part[0]) // 2, (height - part[1]) // 2
    # Cut first: a resize with a box would let the filter look at pixels beside it.
    image = image.crop((left, top, left + part[0], top + part[1]))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random_flip and mirror < 0.5 else image


def ten_crop_side(size: int) -> int:
    """Side of the square image out of which ten crops of side ``size`` are taken."""
    return int(1.1 * size)


def ten_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """Ten crops of every image: four corners (top first, left first) and centre, then their mirror images.

    [B, 3, R, R] with R = ``ten_crop_side(size)`` -> [B, 10, 3, size, size].
    """
    end = images.shape[-1] - size
    corners = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    five = [images[..., top : top + size, left : left + size] for top, left in corners]
    return torch.stack([*five, *(crop.flip(-1) for crop in five)], dim=1)


class ImageTransform:
    """What image data sets do to an image file, from their options.

    Args:
        image_size: side of the result.
        resize_shorter_edge: length given to the shorter edge before the crop; ``image_size`` if None.
        resize: "shorter_edge" (bicubic), "bilinear" or "bilinear_aliased", see ``resize_shorter_edge``; or "adm" for
            ``adm_center_crop``, which takes no random crop.
        random_crop: cut the square at a random place instead of the centre.
        random_flip: mirror half of the images.
        random_area: cut a part of random shape with at least this share of the area, see ``area_crop``, instead of the
            other resizes and crops; 0 is off.
        alpha, orientation: see ``PixelRules``.

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
        random_area: float = 0.0,
        alpha: Alpha = "white",
        orientation: Orientation = "stored",
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size={image_size} must be at least 1")
        if resize not in get_args(Resize):
            raise ValueError(f"resize={resize!r} is unknown; choose one of {list(get_args(Resize))}")
        if resize == "adm" and (random_crop or resize_shorter_edge is not None):
            raise ValueError("resize='adm' takes neither random_crop nor resize_shorter_edge")
        if not 0 <= random_area <= 1:
            raise ValueError(f"random_area={random_area} must be a share, from 0 to 1")
        if random_area and (random_crop or resize != "shorter_edge" or resize_shorter_edge is not None):
            raise ValueError(
                f"random_area={random_area} takes neither random_crop nor resize_shorter_edge nor another resize"
            )
        self.rules = PixelRules(alpha, orientation)
        self.image_size = image_size
        self.resize_edge = image_size if resize_shorter_edge is None else resize_shorter_edge
        if self.resize_edge < image_size:
            raise ValueError(
                f"resize_shorter_edge={resize_shorter_edge} is less than image_size={image_size}"
            )
        self.resize = resize
        self.random_crop = random_crop
        self.random_flip = random_flip
        self.random_area = random_area

    def read(self, file: Path | bytes, name: str, rng: np.random.Generator) -> torch.Tensor:
        """A file or its bytes -> uint8 [3, image_size, image_size]; raises CorruptSample with ``name``."""
        return self(decode_image(file, name, self.rules), rng)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """RGB image -> uint8 [3, image_size, image_size]."""
        if self.random_area:
            return pil_to_tensor(area_crop(image, self.image_size, self.random_area, self.random_flip, rng))
        if self.resize == "adm":
            image = adm_center_crop(image, self.image_size)
        crop = train_crop(
            image,
            resize_edge=self.resize_edge,
            size=self.image_size,
            random_crop=self.random_crop,
            random_flip=self.random_flip,
            rng=rng,
            resize="shorter_edge" if self.resize == "adm" else self.resize,
        )
        return pil_to_tensor(crop)


def _center(shape: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    # Halves go to the even side, as in torchvision.
    left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
    return left, top, left + size, top + size
