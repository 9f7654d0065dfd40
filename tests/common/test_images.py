import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import enlarge, flatten, grid, read_image, to_float, to_uint8
from storage.files import save_png


def test_levels_are_rounded_to_the_nearest_and_clamped():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 0.5, 254.6 / 255, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels).dtype == torch.float32 and to_float(levels)[-1] == 1
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)).tolist() == [128]


def test_grid_places_images_row_by_row():
    pictures = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 4) / 10
    made = grid(pictures, columns=3, pad=1)
    assert made.shape == (3, 2 * 3 + 1, 3 * 5 + 1)
    for i in range(5):
        top, left = 1 + i // 3 * 3, 1 + i % 3 * 5
        assert (made[:, top : top + 2, left : left + 4] == i / 10).all()
    assert (made[:, 4:6, 11:] == 1).all() and (made[:, 0] == 1).all()  # the missing place and the border
    assert grid(pictures[:2], columns=8, pad=0).shape == (3, 2, 8)


def test_enlarge_repeats_pixels():
    made = enlarge(torch.tensor([[[1, 2], [3, 4]]]), 2)
    assert made.tolist() == [[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]


def test_transparency_is_shown_on_white():
    colour = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], dtype=np.uint8)
    expected = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    assert np.array(flatten(Image.fromarray(colour, "RGBA")))[0].tolist() == expected
    assert np.array(flatten(Image.fromarray(colour[..., [0, 3]], "LA")))[0, 0].tolist() == [255] * 3
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    palette.info["transparency"] = 0
    assert flatten(palette).getpixel((0, 0)) == (255, 255, 255)
    assert flatten(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_unreadable_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png does not exist"):
        read_image(tmp_path / "nowhere.png")
    save_png(tmp_path / "a.png", torch.rand(3, 40, 40))
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png cannot be read"):
            read_image(tmp_path / "a.png")


def test_a_part_that_claims_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "a.png"
    save_png(path, torch.rand(3, 40, 40))
    content = path.read_bytes()
    at = content.index(b"IDAT") - 4
    # One row more than there are, so that the last part is read to its claimed end.
    path.write_bytes(content[:at] + struct.pack(">I", 2**31 - 1) + content[at + 4 : -20] + b"x" * 20)
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), most))
    try:
        with pytest.raises(ValueError, match=r"a\.png cannot be read"):
            read_image(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))
