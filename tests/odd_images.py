"""Image files as people have them: depths, alpha, orientations, and files that hold no picture."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def png_file(
    width: int, height: int, depth: int, colour: int, rows: list[bytes], *, transparent: bytes | None = None
) -> bytes:
    """A PNG of any bit depth and colour type, which Pillow does not write; `transparent` is its tRNS chunk."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    key = [] if transparent is None else [(b"tRNS", transparent)]
    chunks = [(b"IHDR", header), *key, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(side: int = 64) -> np.ndarray:
    """All grey levels in a row, uint8 [side, side]."""
    return np.tile(np.linspace(0, 255, side).astype(np.uint8), (side, 1))


def write_gray16(folder: Path) -> list[Path]:
    """The same ramp in 8 and in 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp()).save(folder / "eight.png")
    Image.fromarray(ramp().astype(np.uint16) * 257).save(folder / "sixteen.png")
    return [folder / "eight.png", folder / "sixteen.png"]


def write_huge(folder: Path, side: int = 15_000) -> Path:
    """A PNG of 27 kB with more pixels than are read, beside three ordinary ones."""
    folder.mkdir(parents=True, exist_ok=True)
    row = b"\0" * (-(-side // 8))
    (folder / "huge.png").write_bytes(png_file(side, side, 1, 0, [row] * side))
    for i in range(3):
        Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / f"a{i}.png")
    return folder / "huge.png"


def write_elongated(folder: Path) -> list[Path]:
    """Pictures of 30000 x 1 and 4 x 20000 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30_000, 1), (90, 90, 90)).save(folder / "line.png")
    Image.new("RGB", (4, 20_000), (90, 90, 90)).save(folder / "strip.png")
    return [folder / "line.png", folder / "strip.png"]


def turned(orientation: int, kind: str = "PNG") -> bytes:
    """A picture of two coloured corners with that EXIF orientation."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:10, :15], pixels[:10, 15:] = (250, 0, 0), (0, 250, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels), kind, exif=exif)
