"""Copies and bursts are found, other pictures are not, and a large set takes no quadratic time."""

import io

import numpy as np
import pytest
from PIL import Image

from data import near_duplicates
from data.near_duplicates import Looks, group_alike, look_at


def scene(seed, side=96):
    """Smooth random colours, as photos have them."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image, form="PNG", taken=None, **options):
    if taken:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = taken
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def groups(*files):
    return group_alike(Looks(*map(np.array, zip(*map(look_at, files), strict=True)))).tolist()


def test_copies_in_other_sizes_and_formats_are_one_group():
    image = scene(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [encoded(image), encoded(image, "JPEG", quality=30), encoded(image.resize((70, 70)), "WEBP")]
    files += [encoded(image.resize((900, 900)), "JPEG")]
    files += [encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned)]
    files += [encoded(scene(seed)) for seed in range(2, 40)]
    assert groups(*files) == [0, 0, 0, 0, 0, *range(5, 43)]


def test_even_pictures_are_told_apart_by_colour():
    files = [encoded(Image.new("RGB", (50, 50), colour)) for colour in ("red", "blue", "#fe0101")]
    assert groups(*files) == [0, 1, 0]


def test_shots_of_one_burst_are_one_group_and_those_of_another_day_are_not():
    first = scene(1, 120)
    files = [
        encoded(first.crop((3 * i, 0, 3 * i + 96, 96)), "JPEG", f"2024:05:01 10:00:0{i}") for i in (0, 3)
    ]
    later = encoded(first.crop((9, 0, 105, 96)), "JPEG", "2024:05:02 10:00:03")
    other = encoded(scene(2), "JPEG", "2024:05:01 10:00:02")
    unknown = encoded(first.crop((9, 0, 105, 96)), "JPEG", "0000:00:00 00:00:00")
    assert groups(*files, other)[:2] == [0, 0] and groups(*files, other)[2] == 2
    assert groups(files[0], later) == [0, 1] and groups(files[0], unknown) == [0, 1]


@pytest.mark.parametrize("kinds", [1, 2**16])
def test_comparisons_grow_with_the_number_of_pictures(monkeypatch, kinds):
    asked, count = [0], near_duplicates._different_bits

    def counted(bits, first, second):
        asked[0] += len(first)
        return count(bits, first, second)

    monkeypatch.setattr(near_duplicates, "_different_bits", counted)
    draws, size = np.random.default_rng(0), 4000
    bits = draws.integers(0, kinds, (size, 8)).astype(np.uint16)
    bits[1::2] = bits[::2]
    colours = draws.integers(0, 256, (size, 192), dtype=np.uint8)
    colours[1::2] = colours[::2]
    found = group_alike(Looks(bits, colours, np.full(size, np.nan)))
    assert (found[1::2] == found[::2]).all() and len(np.unique(found)) == size // 2
    assert asked[0] <= 28 * 32 * size < size * size
