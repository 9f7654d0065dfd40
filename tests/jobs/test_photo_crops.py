"""Pieces of photographs: their number, sizes and classes, and what a missing package says."""

import numpy as np
import pytest
from PIL import Image

from jobs.options.photo_crops import PhotoCropsOptions
from jobs.photo_crops import PHOTOS, photo_crops, pieces


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("packages"), np.random.default_rng(0)
    for photo in PHOTOS:
        path = folder / photo.file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(path)
    return folder


def test_pieces_are_as_many_of_every_class_and_the_same_again(packages, tmp_path):
    for name in ("one", "two"):
        photo_crops(PhotoCropsOptions(output=str(tmp_path / name), packages=str(packages), count=90))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jpg"))
    counts = {photo.kind: sum(file.parent.name == photo.kind for file in files) for photo in PHOTOS}
    assert len(files) == 90 and set(counts.values()) == {10}
    for file in files:
        image = Image.open(tmp_path / "one" / file)
        assert image.width == image.height >= 64
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    page = (tmp_path / "one" / "licences.md").read_text()
    assert all(photo.file in page and photo.licence in page for photo in PHOTOS)


def test_flat_parts_of_a_photograph_are_left_out():
    pixels = np.zeros((200, 400), dtype=np.uint8)
    pixels[:, 300:] = np.random.default_rng(0).integers(0, 256, (200, 100))
    boxes = list(pieces(Image.fromarray(pixels), 5, 64, np.random.default_rng(0)))
    assert len(set(boxes)) == 5 and all(right > 300 for _, _, right, _ in boxes)


def test_a_missing_package_is_named_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"skimage/data/chelsea.png is not there; .*packages=FOLDER"):
        photo_crops(PhotoCropsOptions(output=str(tmp_path / "photos"), packages=str(tmp_path)))
