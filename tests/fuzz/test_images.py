"""Image files, whole, damaged, and with sizes that no memory holds."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image

from common.images import UnreadableImage, decode, read_head, read_image
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import damaged, garbage

_FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "DIB"]
_MODES = ["L", "RGB", "RGBA", "P", "1", "I;16", "LA", "CMYK", "F", "I"]


@cache
def _saved(form: str, mode: str) -> bytes:
    stream = io.BytesIO()
    image = Image.new("RGBA", (17, 9), (200, 30, 60, 128)).convert(
        "RGB" if mode in ("P", "CMYK", "F", "I") else "RGBA"
    )
    try:
        image = (
            image.convert("L").convert(mode) if mode in ("I;16", "F", "I", "1", "LA") else image.convert(mode)
        )
        image.save(stream, form)
    except (OSError, ValueError, KeyError):  # a format that has no such mode
        image.convert("RGB").save(stream, form)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, depth: int, colour: int, text: bytes | None, rows: int) -> bytes:
    """A PNG that declares a size, with a few rows of zeros, and perhaps a compressed text that grows."""
    chunks = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if text is not None:
        chunks += _chunk(b"zTXt", b"x\0\0" + text)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunks
        + _chunk(b"IDAT", zlib.compress(bytes(rows * 100)))
        + _chunk(b"IEND", b"")
    )


_TEXTS = [zlib.compress(bytes(1 << 24)), zlib.compress(b"x")]
_sides = st.sampled_from([0, 1, 7, 16, 255, 30_000, 2**16, 2**24, 2**31 - 1, 2**32 - 1])
_pngs = st.builds(
    _png,
    _sides,
    _sides,
    st.sampled_from([8, 8, 16, 1, 3]),
    st.sampled_from([0, 2, 3, 4, 6, 9]),
    st.none() | st.sampled_from(_TEXTS),
    st.sampled_from(range(0, 21)),
)
_SPECIAL = [
    b"",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(../marker) (w) file closefile\n",
    b"P6 99999999 99999999 255\n",
    b"P3 2 2 255\n" + b"9 " * 12,
    b"#?RADIANCE\n",
    b"v/1\x01",
    b"PF 2 2 -1.0\n" + bytes(48),
    b"GIF89a" + b"\xff" * 30,
    b"BM" + b"\xff" * 60,
    b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 60,
    b"<svg><script/></svg>",
    b"qoif" + struct.pack(">II", 2**31, 2**31) + b"\x04\x00",
]
_saved_files = st.builds(_saved, st.sampled_from(_FORMATS), st.sampled_from(_MODES))
_files = st.one_of(
    _saved_files, damaged(_saved_files), _pngs, damaged(_pngs), garbage, st.sampled_from(_SPECIAL)
)


def _read(folder: Path, how: str) -> None:
    path = folder / "x.png"
    if how in ("size", "bytes"):
        try:
            read_head(path) if how == "size" else decode(path.read_bytes())
        except UnreadableImage as error:  # the caller, who has the bytes, names them
            raise ValueError(f"x.png: {error}") from error
    else:
        picture = read_image(path, orientation=how)
        assert picture.mode == "RGB" and min(picture.size) > 0


READER = Reader(
    "images",
    st.builds(
        lambda content, how: Case({"x.png": content}, how),
        _files,
        st.sampled_from(["stored", "upright", "bytes", "size"]),
    ),
    _read,
)


def test_pictures():
    check(READER)
