"""Which formats of images this machine reads, and what to install for those that it does not.

HEIC is read by pillow-heif where that is installed; AVIF by Pillow from 11.3 on, as most builds have it.
"""

from __future__ import annotations

import contextlib
from functools import cache

from PIL import Image

# Names of Pillow's readers. It would try all others too, whatever a file is called, and one starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "MPO", "PPM", "AVIF", "JPEG2000")
_FORMATS += ("TGA", "QOI", "SGI", "PCX", "ICO", "HEIF")
_OPTIONAL = {"HEIF": ("HEIC", "pip install pillow-heif"), "AVIF": ("AVIF", 'pip install "pillow>=11.3"')}
_SUFFIXES = {".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF"}
# The first of the brands in a file's head (ISO/IEC 23008-12, 10.2; AVIF specification, 6).
_BRANDS = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIF")
_BRANDS |= dict.fromkeys((b"avif", b"avis"), "AVIF")


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of the formats that are read here, as Pillow calls them."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif  # not before an image is opened: programs start without it

        pillow_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def missing_reader(suffix: str) -> str:
    """Why files of a lower-case suffix are not read on this machine, with what to install; empty if they are."""
    return _missing(_SUFFIXES.get(suffix, ""))


def missing_reader_of(start: bytes) -> str:
    """As `missing_reader`, for the first 12 bytes of a file."""
    return _missing(_BRANDS.get(start[8:12], "") if start[4:8] == b"ftyp" else "")


def _missing(reader: str) -> str:
    if not reader or reader in readable_formats():
        return ""
    return "{}, which needs: {}".format(*_OPTIONAL[reader])
