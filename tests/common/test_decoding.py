"""Image files of every kind become the same 8-bit RGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from common.images import MAX_PIXELS, PixelRules, TooManyPixels, UnreadableImage, decode, flatten, read_head
from common.images import read_image as read
from tests.odd_images import encoded, png_file, ramp, turned, write_gray16, write_huge

DROP, UPRIGHT = PixelRules(alpha="drop"), PixelRules(orientation="upright")


def pixels(file, rules=None) -> np.ndarray:
    """uint8 [H, W, 3] of a file."""
    decoded = decode(file, rules)
    assert decoded.image.mode == "RGB"
    return np.asarray(decoded.image)


def sixteen_bits(kind):
    """The ramp in 16 bits as a file of that kind."""
    levels = ramp().astype(np.uint16) * 257
    big = levels.astype(">u2")
    head = b"P5 64 64 65535\n"
    return {
        "PNG grey": lambda: encoded(Image.fromarray(levels)),
        "PNG grey and alpha": lambda: png_file(
            64, 64, 16, 4, [np.stack([row, 0 * row + 65535], -1).tobytes() for row in big]
        ),
        "PNG colour": lambda: png_file(64, 64, 16, 2, [np.stack([row] * 3, -1).tobytes() for row in big]),
        "PGM": lambda: head + big.tobytes(),
        "PGM of 10 bits": lambda: b"P5 64 64 1023\n" + (levels // 64).astype(">u2").tobytes(),
        "PPM": lambda: b"P6 64 64 65535\n" + np.stack([big] * 3, -1).tobytes(),
        "TIFF little-endian": lambda: encoded(Image.fromarray(levels), "TIFF"),
        "TIFF big-endian": lambda: tiff(big.tobytes(), 16, ">"),
        "TIFF compressed": lambda: encoded(Image.fromarray(levels), "TIFF", compression="tiff_lzw"),
        "TIFF, white is zero": lambda: tiff((65535 - levels).tobytes(), 16, "<", photometric=0),
        "TIFF of 12 bits": lambda: tiff(packed_12(levels >> 4), 12, "<"),
        "TIFF colour": lambda: tiff(np.stack([levels] * 3, -1).tobytes(), 16, "<", photometric=2, samples=3),
        "JPEG 2000": lambda: encoded(Image.fromarray(levels), "JPEG2000"),
    }[kind]()


def packed_12(levels: np.ndarray) -> bytes:
    """Two levels of 12 bits in three bytes."""
    first, second = levels.reshape(-1, 2).T.astype(np.uint16)
    three = [first >> 4, ((first & 15) << 4) | (second >> 8), second & 255]
    return np.stack(three, -1).astype(np.uint8).tobytes()


def tiff(
    content: bytes, bits: int, order: str, *, photometric: int = 1, samples: int = 1, form: int = 1
) -> bytes:
    """An uncompressed TIFF of 64 x 64 pixels in one strip; `form` is the sample format, 3 for floats."""
    many = samples > 1  # several values of 16 bits stand after the directory
    entries = [(256, 64), (257, 64), (258, bits), (259, 1), (262, photometric), (273, 8), (277, samples)]
    entries += [(278, 64), (279, len(content)), (339, form)]
    directory_at = 8 + len(content)
    behind = directory_at + 2 + 12 * len(entries) + 4
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for tag, value in entries:
        wide = tag in (273, 279)
        if many and tag in (258, 339):
            directory += struct.pack(order + "HHII", tag, 3, samples, behind + len(extra))
            extra += struct.pack(order + "H", value) * samples
        else:
            packed = struct.pack(order + ("I" if wide else "HH"), value, *([] if wide else [0]))
            directory += struct.pack(order + "HHI", tag, 4 if wide else 3, 1) + packed
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(order + "HI", 42, directory_at)
    return start + content + directory + struct.pack(order + "I", 0) + extra


@pytest.mark.parametrize(
    "kind",
    [
        "PNG grey",
        "PNG grey and alpha",
        "PNG colour",
        "PGM",
        "PGM of 10 bits",
        "PPM",
        "TIFF little-endian",
        "TIFF big-endian",
        "TIFF compressed",
        "TIFF, white is zero",
        "TIFF of 12 bits",
        "TIFF colour",
        "JPEG 2000",
    ],
)
def test_deep_pixels_keep_their_upper_eight_bits(kind):
    wanted = np.stack([ramp()] * 3, axis=-1).astype(int)
    assert np.abs(pixels(sixteen_bits(kind)) - wanted).max() <= 1


def test_sixteen_bits_from_a_file_equal_eight(tmp_path):
    eight, sixteen = write_gray16(tmp_path / "c")
    assert np.array_equal(np.asarray(read(sixteen)), np.asarray(read(eight)))


def test_few_bits_use_the_whole_range():
    assert pixels(png_file(4, 1, 2, 0, [bytes([0b00011011])]))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert pixels(png_file(2, 1, 4, 0, [b"\x0f"]))[0, :, 0].tolist() == [0, 255]
    assert pixels(encoded(Image.fromarray(ramp() > 100)))[0, [0, -1], 0].tolist() == [0, 255]


def test_values_without_a_fixed_range_are_refused_by_name():
    floats, ints = ramp().astype(np.float32) / 255, ramp().astype(np.int32)
    files = {
        "float pixels": [
            encoded(Image.fromarray(floats), "TIFF"),
            b"Pf\n64 64\n-1.0\n" + floats.tobytes(),
            tiff(np.stack([floats] * 3, -1).tobytes(), 32, "<", photometric=2, samples=3, form=3),
            tiff(ramp().astype("<f2").tobytes(), 16, "<", form=3),
        ],
        "32-bit pixels": [encoded(Image.fromarray(ints), "TIFF"), tiff(ints.tobytes(), 32, "<", form=2)],
        "Radiance HDR": [b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n\1\2\3\4"],
        "OpenEXR": [b"v/1\x01" + bytes(40)],
        "PFM": [b"PF\n64 64\n-1.0\n" + np.stack([floats] * 3, -1).tobytes()],
    }
    for what, contents in files.items():
        for content in contents:
            with pytest.raises(UnreadableImage, match=what.split()[0]):
                decode(content)


def test_transparency_is_white_or_dropped():
    red = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], dtype=np.uint8)
    colour, grey = Image.fromarray(red), Image.fromarray(red[..., [0, 3]], "LA")
    palette = Image.new("P", (3, 1))
    palette.putpalette([200, 0, 0] * 3)
    palette.putdata([0, 1, 2])
    white = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    cases = {
        "RGBA": (encoded(colour), white, [200, 0, 0]),
        "RGBA WebP": (encoded(colour, "WEBP", lossless=True, exact=True), white, [200, 0, 0]),
        "RGBA TIFF": (encoded(colour, "TIFF"), white, [200, 0, 0]),
        "LA": (encoded(grey), [[255] * 3, [200] * 3, [244] * 3], [200] * 3),
        "P": (encoded(palette, transparency=b"\x00\xff\x33"), white, [200, 0, 0]),
    }
    for name, (content, on_white, dropped) in cases.items():
        assert pixels(content)[0].tolist() == on_white, name
        assert (pixels(content, DROP) == dropped).all(), name
        assert decode(content).transparent and decode(content, DROP).transparent, name
    assert not decode(encoded(Image.fromarray(red[:, 1:2]))).transparent, "alpha of 255 everywhere"
    assert flatten(colour, "drop").getpixel((0, 0)) == (200, 0, 0)
    assert np.asarray(flatten(colour.convert("RGBa")))[0, 1:].tolist() == white[1:], "premultiplied"


def test_a_transparent_colour_counts_in_the_bits_of_the_file():
    deep = struct.pack(">6H", 0x1234, 0, 0, 0xFF00, 0, 0)
    files = {
        "2 bits": (png_file(4, 1, 2, 0, [bytes([0b00011011])], transparent=b"\0\1"), [0, 255, 170, 255]),
        "4 bits": (png_file(2, 1, 4, 0, [b"\x5f"], transparent=b"\0\5"), [255, 255]),
        "1 bit": (png_file(2, 1, 1, 0, [b"\x40"], transparent=b"\0\0"), [255, 255]),
        "8 bits": (png_file(2, 1, 8, 0, [b"\5\6"], transparent=b"\0\5"), [255, 6]),
        "16 bits": (png_file(2, 1, 16, 0, [b"\x12\x34\x12\x35"], transparent=b"\x12\x34"), [255, 0x12]),
        "16-bit colour": (png_file(2, 1, 16, 2, [deep], transparent=b"\x12\x34" + bytes(4)), [255, 0xFF]),
    }
    for name, (content, wanted) in files.items():
        assert pixels(content)[0, :, 0].tolist() == wanted, name
        assert decode(content).transparent, name
    opaque = png_file(2, 1, 8, 0, [b"\5\6"], transparent=b"\0\7")
    assert not decode(opaque).transparent and pixels(opaque)[0, :, 0].tolist() == [5, 6]


def test_other_colour_spaces():
    green = Image.new("RGB", (16, 16), (30, 160, 60))
    for mode, kind, most in (
        ("CMYK", "JPEG", 3),
        ("CMYK", "TIFF", 1),
        ("YCbCr", "JPEG", 3),
        ("YCbCr", "TIFF", 3),
    ):
        made = pixels(encoded(green.convert(mode), kind)).astype(int)
        assert np.abs(made - [30, 160, 60]).max() <= most, (mode, kind)
    grey = np.zeros((16, 16, 3), dtype=np.uint8)
    grey[..., 0] = 128  # L* = 50, which is 119 in sRGB
    lab = Image.frombytes("LAB", (16, 16), grey.tobytes())
    assert np.abs(pixels(encoded(lab, "TIFF")).astype(int) - 119).max() <= 2
    assert np.abs(np.asarray(flatten(green.convert("HSV"))).astype(int) - [30, 160, 60]).max() <= 3


def test_ordinary_pixels_are_those_of_pillow():
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
        content = encoded(image, kind)
        assert np.array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))), (
            kind
        )
    assert np.array_equal(pixels(encoded(image.convert("L"))), np.stack([image.convert("L")] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_stored_or_upright(kind, orientation):
    content = turned(orientation, kind)
    plain = turned(1, kind)
    assert np.array_equal(pixels(content), pixels(plain))
    assert decode(content).orientation == orientation and decode(content).size == (30, 20)
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(content, UPRIGHT), wanted)
    assert decode(content, UPRIGHT).size == read_head(content).size == (30, 20), "sizes are those of the file"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_leaves_the_pixels():
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    content = encoded(image, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0")
    assert (pixels(content, UPRIGHT) == [1, 2, 3]).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_pictures(kind):
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "lime", "blue")]
    content = encoded(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert (pixels(content) == [255, 0, 0]).all()


def test_too_many_pixels_are_refused_without_decoding(tmp_path):
    huge = write_huge(tmp_path)
    for file in (huge, huge.read_bytes()):
        with pytest.raises(TooManyPixels, match="too many pixels"):
            decode(file)
        with pytest.raises(TooManyPixels, match="too many pixels"):
            read_head(file)
    with pytest.raises(ValueError, match=r"huge\.png cannot be read: too many pixels"):
        read(huge)


def test_the_limit_stays_where_pillow_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(TooManyPixels, match=f"15000 x 15000, at most {MAX_PIXELS}"):
        decode(write_huge(tmp_path))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_row_of_one_pixel_takes_memory_too(tmp_path):
    """Pillow keeps a place and a line for each of 2^24 rows: a gigabyte for a file of 70 bytes."""
    head = struct.pack(">IIBBBBB", 1, 2**24, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    with pytest.raises(TooManyPixels, match="1 x 16777216, at most .* and 1048576 on a side"):
        decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_pictures_below_the_limit_are_read():
    side = 9_600  # 92 million pixels of one bit: Pillow warns
    assert read_head(png_file(side, side, 1, 0, [bytes(side // 8)] * side)).size == (side, side)


def test_files_that_hold_no_picture_say_so(tmp_path):
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    jpeg = encoded(Image.new("RGB", (64, 64)), "JPEG")
    cases = {
        b"": "the file is empty",
        b"plain text": "not a readable image",
        whole[: len(whole) // 2]: ".",
        jpeg[: len(jpeg) // 2]: "(?i)truncated",
        png_file(0, 4, 8, 0, []): ".",
        png_file(4, 0, 8, 0, []): ".",
        encoded(Image.new("RGB", (8, 8)), "EPS"): "not a readable image",
    }
    for content, message in cases.items():
        with pytest.raises(UnreadableImage, match=message):
            decode(content)
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a.png")


def test_rules_are_checked():
    with pytest.raises(ValueError, match="alpha='black' is unknown; choose one of \\['white', 'drop'\\]"):
        PixelRules(alpha="black")
    with pytest.raises(ValueError, match="orientation='up' is unknown"):
        PixelRules(orientation="up")
