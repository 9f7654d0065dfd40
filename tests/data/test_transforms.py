"""Image transforms: released values, geometry, randomness."""

import resource
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import pil_to_tensor, to_float
from data import transforms
from data.source import CorruptSample
from data.transforms import (
    CROPS,
    ImageTransform,
    adm_center_crop,
    area_crop,
    center_crop,
    decode_image,
    resize_aliased,
    resize_shorter_edge,
    ten_crop,
    ten_crop_side,
    train_crop,
)
from tests.parity import golden

PARTS = {
    "every4": np.s_[::4, ::4],
    "tl40": np.s_[:40, :40],
    "mid40": np.s_[108:148, 108:148],
    "br40": np.s_[-40:, -40:],
}


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("tag", ["wide_eval", "tall_odd_eval", "small_eval", "wide_train288_center"])
def test_values_equal_the_reference(tag):
    arrays = golden("image_transform")
    name, _, kind = tag.rpartition("_eval") if "eval" in tag else tag.partition("_train")
    image = Image.fromarray(arrays[f"{name or tag.split('_')[0]}_in"])
    if "eval" in tag:
        result = center_crop(image, 256)
    else:
        rng = np.random.default_rng(0)
        result = train_crop(image, resize_edge=288, size=256, random_crop=False, random_flip=False, rng=rng)
    for part, where in PARTS.items():
        difference = np.abs(np.asarray(result)[where].astype(int) - arrays[f"{tag}_u8_{part}"].astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() <= 0.01, f"{tag} {part}"


def test_shorter_edge_gets_the_size_and_the_longer_one_is_rounded_down():
    assert resize_shorter_edge(picture(30, 49), 20).size == (32, 20)
    assert resize_shorter_edge(picture(49, 30), 20).size == (20, 32)
    assert resize_shorter_edge(picture(20, 33), 20).size == (33, 20)


def test_bilinear_crop_equals_the_reference():
    """Of Open-MAGVIT2: 8-bit values differ by a level between versions of Pillow."""
    arrays = golden("magvit2_misc")
    result = np.asarray(CROPS["bilinear"](Image.fromarray(arrays["prep_in"]), 128)).astype(int)
    assert np.abs(result - arrays["prep_out"]).max() <= 1
    corner = 2 * to_float(torch.from_numpy(result[:4, :4])) - 1
    assert np.abs(corner.numpy() - arrays["prep_float_corner"]).max() <= 2.01 / 255
    others = [
        np.asarray(CROPS[name](Image.fromarray(arrays["prep_in"]), 128)) for name in ("shorter_edge", "adm")
    ]
    assert all(np.abs(result - other).max() > 8 for other in others)


def four_neighbours(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear without antialiasing, one value after the other, in exact fractions until it is rounded."""
    tall, wide, channels = pixels.shape
    result = np.zeros((height, width, channels), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            v = min(max(Fraction(2 * y + 1, 2) * tall / height - Fraction(1, 2), 0), tall - 1)
            u = min(max(Fraction(2 * x + 1, 2) * wide / width - Fraction(1, 2), 0), wide - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, tall - 1), min(left + 1, wide - 1)
            for c in range(channels):
                above = pixels[top, left, c] * (1 - u + left) + pixels[top, right, c] * (u - left)
                below = pixels[bottom, left, c] * (1 - u + left) + pixels[bottom, right, c] * (u - left)
                result[y, x, c] = round(above * (1 - v + top) + below * (v - top))
    return result


@pytest.mark.parametrize(("shape", "size"), [((37, 50), (12, 17)), ((9, 7), (16, 20)), ((24, 24), (12, 12))])
def test_aliased_resize_is_that_of_four_neighbours(shape, size):
    image = picture(*shape)
    result = np.asarray(resize_aliased(image, size[::-1]))
    wanted = four_neighbours(np.asarray(image).astype(int).astype(object), *size)
    assert result.shape == (*size, 3) and np.abs(result.astype(int) - wanted.astype(int)).max() <= 1
    assert (result != wanted).mean() < 0.01  # ties, in float32


def test_aliased_stripes_stay_and_antialiased_ones_become_grey():
    rows = np.tile(np.repeat(np.array([0, 255], dtype=np.uint8), 3), (66, 11))
    stripes = Image.fromarray(np.repeat(rows[..., None], 3, axis=2))
    aliased, smooth = (np.asarray(CROPS[name](stripes, 22)) for name in ("bilinear_aliased", "bilinear"))
    assert set(np.unique(aliased)) == {0, 255}, "a third of the size: the middle pixel of every stripe"
    assert smooth.min() > 20 and smooth.max() < 235


@pytest.mark.parametrize("resize", ["bilinear", "bilinear_aliased"])
def test_both_kinds_of_bilinear_have_random_and_central_crops(resize):
    image = picture(40, 75)
    shape = {"bilinear": (37, 20), "bilinear_aliased": (38, 20)}[
        resize
    ]  # 37.5: rounded down, and to the nearest even
    small = resize_shorter_edge(image, 20, resize)
    assert small.size == shape
    wanted = pil_to_tensor(small)
    random = ImageTransform(image_size=20, resize=resize, random_crop=True)
    lefts = set()
    for seed in range(60):
        crop = random(image, np.random.default_rng(seed))
        lefts |= {left for left in range(shape[0] - 19) if torch.equal(crop, wanted[:, :, left : left + 20])}
    assert {0, shape[0] - 20} <= lefts and len(lefts) > 10
    still = ImageTransform(image_size=20, resize=resize)(image, np.random.default_rng(0))
    assert torch.equal(still, pil_to_tensor(CROPS[resize](image, 20)))


def test_random_crop_reaches_both_ends_and_flip_mirrors():
    image = picture(8, 10)
    pixels = np.asarray(image)
    options = {"resize_edge": 8, "size": 8, "random_crop": True}
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        crop = np.asarray(train_crop(image, **options, random_flip=True, rng=rng))
        matches = [
            (left, flip)
            for left in range(3)
            for flip in (False, True)
            if np.array_equal(crop[:, ::-1] if flip else crop, pixels[:, left : left + 8])
        ]
        seen.add(matches[0])
    assert seen == {(left, flip) for left in range(3) for flip in (False, True)}


def test_adm_crop_halves_first():
    assert adm_center_crop(picture(70, 100), 16).size == (16, 16)
    rows = np.repeat(np.array([[0, 255] * 32], dtype=np.uint8), 64, axis=0)
    stripes = Image.fromarray(np.repeat(rows[..., None], 3, axis=2))
    assert np.unique(np.asarray(adm_center_crop(stripes, 32))).tolist() == [128]  # box filter: plain means


def places(height: int, width: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row, up to 255."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def test_random_areas_lie_within_their_limits_and_everywhere():
    image, parts = places(160, 200), []
    for seed in range(200):
        crop = area_crop(image, 32, 0.25, random_flip=False, rng=np.random.default_rng(seed))
        pixels = np.asarray(crop).astype(float)
        assert crop.size == (32, 32)
        # 31 of 32 pixel distances lie between the outermost columns, and between the outermost rows.
        wide, high = (pixels[16, -2, 0] - pixels[16, 1, 0], pixels[-2, 16, 1] - pixels[1, 16, 1])
        parts.append((wide * 32 / 29, high * 32 / 29, pixels[0, 0, 0], pixels[0, 0, 1]))
    wide, high, left, top = np.array(parts).T
    share, aspect = wide * high / (200 * 160), wide / high
    assert 0.23 < share.min() < 0.3 and 0.9 < share.max() < 1.03
    assert 0.7 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.42
    assert left.min() < 4 and (left + wide).max() > 196 and top.min() < 4 and (top + high).max() > 156


def test_a_random_area_may_be_mirrored_and_falls_back_to_the_centre():
    image = places(32, 32)
    firsts = []
    for seed in range(20):
        options = {"image_size": 32, "random_area": 1.0, "random_flip": True}
        crop = ImageTransform(**options)(image, np.random.default_rng(seed)).numpy()
        assert crop.shape == (3, 32, 32)
        firsts.append(crop[0, 16, 0] < crop[0, 16, -1])
    assert 2 < sum(firsts) < 18
    wide = np.asarray(area_crop(places(10, 240), 16, 1.0, False, np.random.default_rng(0)))
    assert 110 < wide[8, 0, 0] < wide[8, -1, 0] < 130, "ten of 240 columns cannot hold all of the area"


def test_ten_crops_are_in_the_released_order():
    assert ten_crop_side(256) == 281
    side = ten_crop_side(20)
    images = torch.arange(2 * 3 * side * side).reshape(2, 3, side, side)
    crops = ten_crop(images, 20)
    assert crops.shape == (2, 10, 3, 20, 20)
    starts = [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    for k, (top, left) in enumerate(starts):
        wanted = images[:, :, top : top + 20, left : left + 20]
        assert torch.equal(crops[:, k], wanted) and torch.equal(crops[:, 5 + k], wanted.flip(-1))


def test_options_are_checked():
    with pytest.raises(ValueError, match="resize_shorter_edge=20 is less than image_size=32"):
        ImageTransform(image_size=32, resize_shorter_edge=20)
    with pytest.raises(ValueError, match="adm.*random_crop"):
        ImageTransform(image_size=32, resize="adm", random_crop=True)
    with pytest.raises(ValueError, match="random_area=1.5 must be a share"):
        ImageTransform(image_size=32, random_area=1.5)
    with pytest.raises(ValueError, match="random_area=0.5 takes neither random_crop"):
        ImageTransform(image_size=32, random_area=0.5, random_crop=True)
    with pytest.raises(ValueError, match="random_area=0.5 takes .* another resize"):
        ImageTransform(image_size=32, random_area=0.5, resize="bilinear")
    with pytest.raises(ValueError, match="'shorter_edge', 'adm', 'bilinear', 'bilinear_aliased'"):
        ImageTransform(image_size=32, resize="nearest")


@pytest.mark.parametrize("resize", ["shorter_edge", "adm"])
def test_transform_gives_evaluation_crops_by_default(resize):
    image = picture(50, 70)
    result = ImageTransform(image_size=32, resize=resize)(image, np.random.default_rng(0))
    wanted = center_crop(image, 32) if resize == "shorter_edge" else adm_center_crop(image, 32)
    assert result.dtype == torch.uint8 and torch.equal(result, pil_to_tensor(wanted))


def test_bytes_that_are_no_image_are_named(tmp_path):
    broken = tmp_path / "broken.png"
    picture(40, 40).save(broken)
    broken.write_bytes(broken.read_bytes()[:600])
    for content in (broken, b"", b"plain text"):
        with pytest.raises(CorruptSample, match="this one"):
            decode_image(content, "this one")


@pytest.mark.parametrize("resize", list(CROPS))
@pytest.mark.parametrize("shape", [(1, 30_000), (20_000, 4), (3, 9_000)])
def test_a_square_is_cut_out_of_very_thin_pictures_before_they_are_resized(resize, shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = Image.fromarray(np.stack([rows % 256, columns % 256, 0 * rows], -1).astype(np.uint8))
    before = peak_memory()
    clock = time.process_time()
    still = ImageTransform(image_size=256, resize=resize)(image, np.random.default_rng(0))
    if resize != "adm":
        crop = train_crop(
            image,
            resize_edge=256,
            size=256,
            random_crop=True,
            random_flip=False,
            rng=np.random.default_rng(0),
        )
        assert crop.size == (256, 256)
    assert time.process_time() - clock < 5  # it was more than a minute
    assert peak_memory() - before < 200 and still.shape == (3, 256, 256)
    middle = (shape[0] // 2 if shape[0] > shape[1] else shape[1] // 2) % 256
    long_axis = 0 if shape[0] > shape[1] else 1
    assert abs(int(still[long_axis].float().mean()) - middle) <= 2, "the middle of the long side"


def peak_memory() -> float:
    """The most that this process has used, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("resize", ["shorter_edge", "bilinear", "adm"])
@pytest.mark.parametrize("shape", [(40, 2000), (1700, 33), (19, 900), (100, 3000), (1, 700)])
def test_a_part_alone_equals_the_part_of_the_whole(resize, shape, monkeypatch):
    # Neither pass clips, so that their order shows in the rounding alone.
    image = Image.fromarray(np.asarray(picture(*shape)) // 4 + 96)
    whole = np.asarray(CROPS[resize](image, 32)).astype(int)
    options = {"resize_edge": 40, "size": 32, "random_crop": True, "random_flip": True}
    options["resize"] = "bilinear" if resize == "bilinear" else "shorter_edge"
    random = [train_crop(image, **options, rng=np.random.default_rng(i)) for i in range(8)]
    monkeypatch.setattr(transforms, "MOST_PIXELS", 0)
    monkeypatch.setattr(transforms, "MOST_PARTS", 0)
    part = np.asarray(CROPS[resize](image, 32)).astype(int)
    assert np.abs(part - whole).max() <= 2 and (np.abs(part - whole) > 1).mean() < 0.01
    for i, wanted in enumerate(random):
        found = np.asarray(train_crop(image, **options, rng=np.random.default_rng(i))).astype(int)
        assert np.abs(found - np.asarray(wanted)).max() <= 2


def test_a_part_of_the_aliased_resize_is_that_of_the_whole():
    image = picture(37, 90)
    whole = np.asarray(resize_aliased(image, (120, 50)))
    for box in [(0, 0, 120, 50), (30, 4, 60, 50), (119, 49, 120, 50)]:
        wanted = whole[box[1] : box[3], box[0] : box[2]]
        assert np.array_equal(np.asarray(resize_aliased(image, (120, 50), box)), wanted)
