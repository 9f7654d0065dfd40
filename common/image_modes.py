"""Pixels of any kind that image files hold, as 8-bit RGB.

Grey and colour, with a palette or without, of 1 to 16 bits per channel. Of 16 bits the upper 8 are kept, for grey as
Pillow does it for colour, so that a picture has the same pixels however it is stored. Colours are taken as they are: an
embedded ICC profile is not applied.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from common.choices import Alpha

_WITH_ALPHA = ("RGBA", "RGBa", "LA", "PA")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class UnreadableImage(ValueError):
    """There are no pixels that can be used. The message says why; who knows the name of the file adds it."""


class TooManyPixels(UnreadableImage):
    """The head of a file announces more pixels than are read."""


def to_rgb(image: Image.Image, alpha: Alpha = "white", raw_mode: str = "") -> tuple[Image.Image, bool]:
    """RGB version of an image, and whether a pixel of it is not opaque.

    Args:
        image: a picture of any mode; for 16 and 32 bits as ``Image.open`` gave it, which knows what the file holds.
        alpha: "white" puts transparent pixels on white; "drop" takes their colours as if they were opaque.
        raw_mode: Pillow's name for the pixels in the file; a transparent colour of a PNG file is given in those.

    Raises:
        UnreadableImage: the pixels are floats, or integers without a fixed range.
    """
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image.convert("RGB"), False
    if isinstance(key := image.info.get("transparency"), (int, tuple)):
        image.info["transparency"] = _eight_bit_key(key, raw_mode)
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), False
    if alpha == "white":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), True


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits of a grey image of more, with alpha where the file names a transparent level."""
    bits = _bits(image)
    levels = np.asarray(image)  # in either byte order
    grey = (levels >> (bits - 8)).astype(np.uint8)
    if _tag(image, _TIFF_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:  # Pillow turns only 8 bits around
        grey = 255 - grey
    result = Image.fromarray(grey)
    key = image.info.get("transparency")
    if isinstance(key, int):
        result.putalpha(Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
    return result


def _bits(image: Image.Image) -> int:
    if image.mode.startswith("I;16"):
        return int(_tag(image, _TIFF_BITS, 16))  # 12 bits are stored in 16
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # these hold at most 16, in 0..65535
        return 16
    kind = "float" if image.mode.startswith("F") else "signed or 32-bit"
    raise UnreadableImage(
        f"its {kind} pixels (mode {image.mode}) have no fixed range; convert it to 8 or 16 bits per channel"
    )


def _tag(image: Image.Image, number: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def _eight_bit_key(key: int | tuple[int, ...], raw_mode: str) -> int | tuple[int, ...]:
    """The transparent colour of a PNG file, which counts in its own bits, in those of the pixels."""
    if raw_mode.startswith("RGB;16") and isinstance(key, tuple):
        return tuple(level >> 8 for level in key)
    scale = {"L;2": 85, "L;4": 17}.get(raw_mode)
    return key * scale if scale and isinstance(key, int) else key
