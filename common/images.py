"""Images as [0, 1] tensors, 8-bit values, grids and files; the one place where image files become pixels."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from common.choices import Alpha, Orientation
from common.image_formats import missing_reader_of, readable_formats
from common.image_modes import TooManyPixels, UnreadableImage, to_rgb

MAX_SIDE = 2**20  # pixels: Pillow takes a hundred bytes for every row, however short
MAX_PIXELS = 2 * 89_478_485  # Pillow's limit, 16384 x 10922: a small file may claim to hold terabytes

_HIGH_RANGE = {b"#?RADIANCE": "Radiance HDR", b"#?RGBE": "Radiance HDR", b"v/1\x01": "OpenEXR", b"PF": "PFM"}
_ORIENTATION = 0x0112  # EXIF, and the same number in TIFF
_EXIF, _TAKEN, _DIGITIZED, _TAKEN_FRACTION = 0x8769, 0x9003, 0x9004, 0x9291
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
# What makes a picture upright, by the value of the tag (EXIF 2.32, 4.6.4): where row 0 and column 0 belong.
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # the others undo themselves

# Pillow warns about half of what is refused here, and about damaged metadata, which does no harm. Not catch_warnings,
# because images are decoded by threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class PixelRules:
    """How image files become RGB.

    Args:
        alpha: "white" composites transparent pixels on white; "drop" takes their colours as if they were opaque.
        orientation: "stored" leaves pixels as the file has them; "upright" turns them as its EXIF tag says.

    Raises:
        ValueError: another word.
    """

    alpha: Alpha = "white"
    orientation: Orientation = "stored"

    def __post_init__(self) -> None:
        for key, known in (("alpha", get_args(Alpha)), ("orientation", get_args(Orientation))):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)!r} is unknown; choose one of {list(known)}")


@dataclass(frozen=True)
class DecodedImage:
    """An image file as RGB, and what the file holds."""

    image: Image.Image
    format: str  # "PNG"
    mode: str  # Pillow's name of the stored pixels: "L", "RGB", "I;16"
    size: tuple[int, int]  # (width, height) as stored
    transparent: bool  # at least one pixel is not opaque
    orientation: int  # EXIF 1..8; 1 is upright


def decode(
    file: str | Path | bytes | IO[bytes], rules: PixelRules | None = None, *, shrink_to: int | None = None
) -> DecodedImage:
    """Decode an image file, its bytes or an open file; the first picture of several.

    Every program gets its pixels from here.

    Args:
        rules: `PixelRules()` if None.
        shrink_to: of a JPEG, a picture of half, a quarter or an eighth the size will do, in which both sides have at
            least this many pixels. It takes a fraction of the time; for looking at pictures, not for training on them.

    Raises:
        UnreadableImage: it is no image, is damaged or empty, has more than MAX_PIXELS pixels, a side above MAX_SIDE, or
            floats.
    """
    rules = rules or PixelRules()
    try:
        with _open(_content(file)) as image:
            raw_mode = image.tile[0][3] if image.tile else ""
            tag = _orientation(image) if image.format == "TIFF" else 1
            size = image.size
            shrunk = shrink_to is not None and image.draft(None, (shrink_to, shrink_to)) is not None
            image.load()
            picture, transparent = to_rgb(image, rules.alpha, raw_mode if isinstance(raw_mode, str) else "")
            orientation = _orientation(image)
            if tag != 1 and orientation == 1:  # some releases of Pillow turn TIFF files and forget the tag
                picture, orientation = picture.transpose(_TO_UPRIGHT[_INVERSE.get(tag, tag)]), tag
            size = size if shrunk else picture.size
            facts = (image.format or "", image.mode, size, transparent, orientation)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # a damaged file makes decoders fail in any way
        raise _unreadable(error, file) from error
    if rules.orientation == "upright" and orientation != 1:
        picture = picture.transpose(_TO_UPRIGHT[orientation])
    return DecodedImage(picture, *facts)


class ImageHead(NamedTuple):
    """What the head of an image file says; see `DecodedImage`."""

    format: str
    mode: str
    size: tuple[int, int]


def read_head(file: str | Path | bytes | IO[bytes]) -> ImageHead:
    """What a file says of its picture, which is not decoded. Raises UnreadableImage."""
    try:
        with _open(file) as image:
            tags = getattr(image, "tag_v2", {})  # of a TIFF, which some releases of Pillow turn
            size = tags.get(_TIFF_WIDTH, image.width), tags.get(_TIFF_HEIGHT, image.height)
            return ImageHead(image.format or "", image.mode, size)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(error, file) from error


def read_capture_time(file: str | Path | bytes | IO[bytes]) -> float | None:
    """When a camera took a photo, by its EXIF data: seconds of local time since the year 1; None if it does not say."""
    try:
        with _open(file) as image:
            tags = image.getexif().get_ifd(_EXIF)
            written = str(tags.get(_TAKEN) or tags[_DIGITIZED]).strip(" \0")
            fraction = str(tags.get(_TAKEN_FRACTION, "")).strip(" \0")
            since = datetime.strptime(written, "%Y:%m:%d %H:%M:%S") - datetime(1, 1, 1)
            return since.total_seconds() + (float(f"0.{fraction}") if fraction.isdecimal() else 0.0)
    except MemoryError:
        raise
    except Exception:  # no tags, damaged ones, or no image
        return None


def has_more_pictures(file: str | Path | bytes | IO[bytes]) -> bool:
    """Whether a file is an animation or has several pages, of which `decode` gives the first."""
    try:
        with _open(file) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged behind the first picture, which may be whole
        return False


def read_image(
    path: str | Path, *, alpha: Alpha = "white", orientation: Orientation = "stored"
) -> Image.Image:
    """Read an image file as RGB; see `PixelRules`.

    Raises:
        FileNotFoundError, ValueError: the file does not exist or is not a readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    try:
        return decode(path, PixelRules(alpha, orientation)).image
    except UnreadableImage as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error


def _content(file: str | Path | bytes | IO[bytes]) -> bytes:
    # Pillow asks a file for as many bytes as a part of it claims to have, and Python first makes room for them all.
    if isinstance(file, (str, Path)):
        return Path(file).read_bytes()
    return file if isinstance(file, bytes) else file.read()


def _open(file: str | Path | bytes | IO[bytes]) -> Image.Image:
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=readable_formats())
    width, height = image.size
    if (
        0 < width * height <= MAX_PIXELS and max(width, height) <= MAX_SIDE
    ):  # Pillow's own limit may be set higher
        return image
    image.close()
    if not width * height:
        raise UnreadableImage(f"it has no pixels: {width} x {height}")
    most = f"at most {MAX_PIXELS}, and {MAX_SIDE} on a side, are read"
    raise TooManyPixels(f"too many pixels: {width} x {height}, {most}")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata leaves the pixels as they are
        return 1
    return value if value in _TO_UPRIGHT else 1


def _unreadable(error: Exception, file: str | Path | bytes | IO[bytes]) -> UnreadableImage:
    if isinstance(error, Image.DecompressionBombError):
        return TooManyPixels(f"too many pixels: {error}")
    return UnreadableImage(_reason(error, file))


def _reason(error: Exception, file: str | Path | bytes | IO[bytes]) -> str:
    if not isinstance(error, UnidentifiedImageError):
        said = " ".join(str(error).split())  # some decoders write several lines
        usual = isinstance(error, (OSError, EOFError, SyntaxError, ValueError)) and said
        return said if usual else f"damaged ({type(error).__name__} {said})".replace(" )", ")")
    # Pillow's message shows an object's address, which would make the name of one sample differ each time.
    if isinstance(file, (str, Path)):
        with open(file, "rb") as opened:
            start = opened.read(16)
    else:
        start = file[:16] if isinstance(file, bytes) else b"?"
    kinds = [kind for magic, kind in _HIGH_RANGE.items() if start.startswith(magic)]
    if kinds:
        return f"it is {kinds[0]}, whose values have no fixed range; convert it to 8 or 16 bits per channel"
    if missing := missing_reader_of(start):
        return f"it is {missing}"
    if start.startswith((b"II*\0", b"MM\0*")):
        return (
            "not a readable image: a TIFF of floats, of another kind of pixels that is not read, or damaged"
        )
    return "not a readable image" if start else "the file is empty"


def flatten(image: Image.Image, alpha: Alpha = "white") -> Image.Image:
    """RGB version of a PIL image, transparent parts on white or with alpha="drop" as if they were opaque."""
    return to_rgb(image, alpha)[0]


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


def pil_to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB PIL image -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
