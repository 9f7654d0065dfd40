"""Pieces of the photographs that come with installed Python packages: own pictures to try things with."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.console import say
from jobs.options.photo_crops import PhotoCropsOptions
from storage.files import write_text
from storage.locks import reserved_folder


class Photo(NamedTuple):
    """A photograph in a package."""

    file: str  # from the folder of packages
    kind: str  # the class of its pieces
    licence: str
    credit: str


CC0, PUBLIC, CC_BY = "CC0", "public domain", "CC BY 2.0"
# As the packages state them: skimage/data/_fetchers.py, sklearn/datasets/images/README.txt.
PHOTOS = (
    Photo("skimage/data/chelsea.png", "cat", CC0, "Stefan van der Walt"),
    Photo("skimage/data/coffee.png", "coffee", CC0, "Rachel Michetti"),
    Photo("sklearn/datasets/images/flower.jpg", "flower", CC_BY, "vultilion, flickr.com"),
    Photo("skimage/data/astronaut.png", "people", PUBLIC, "NASA"),
    Photo("matplotlib/mpl-data/sample_data/grace_hopper.jpg", "people", PUBLIC, "United States Navy"),
    Photo("skimage/data/retina.jpg", "retina", CC0, "Mikael Häggström"),
    Photo("skimage/data/rocket.jpg", "rocket", PUBLIC, "SpaceX"),
    Photo("skimage/data/hubble_deep_field.jpg", "stars", PUBLIC, "NASA"),
    Photo("sklearn/datasets/images/china.jpg", "temple", CC_BY, "danielbuechele, flickr.com"),
    Photo("skimage/data/brick.png", "texture", CC0, "cc0textures.com"),
    Photo("skimage/data/grass.png", "texture", CC0, "cc0textures.com"),
    Photo("skimage/data/gravel.png", "texture", CC0, "cc0textures.com"),
)
SMALLEST, LARGEST = 0.25, 0.75  # side of a piece, as a share of the photograph's shorter side
MOST_SHARED = 0.6  # of two pieces of a photograph: their common area as a share of all that they cover
FLAT = 6.0  # standard deviation of the pixels below which a piece shows nothing, such as the night sky


def photo_file(photo: Photo, packages: str | None) -> Path:
    """Where a photograph is.

    Raises:
        FileNotFoundError: its package is not installed, or of another release.
    """
    package, _, rest = photo.file.partition("/")
    if packages is not None:
        path = Path(packages) / photo.file
    else:
        found = find_spec(package)
        path = Path(found.origin).parent / rest if found and found.origin else Path(photo.file)
    if not path.is_file():
        names = "scikit-image scikit-learn matplotlib"
        raise FileNotFoundError(
            f"photograph {photo.file} is not there; expected a folder made by"
            f" `pip install --no-deps --target FOLDER {names}`, given as packages=FOLDER"
        )
    return path


def pieces(
    photo: Image.Image, count: int, least: int, rng: np.random.Generator
) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of `count` different squares of a photograph that are not flat."""
    gray = np.asarray(photo.convert("L"), dtype=np.float32)
    shorter, chosen = min(photo.size), []
    low, high = max(least, SMALLEST * shorter), max(least, LARGEST * shorter)
    for attempt in range(200 * count):
        side = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        left, top = (int(rng.integers(0, whole - side + 1)) for whole in photo.size)
        box = (left, top, left + side, top + side)
        # Of a small photograph, pieces come closer together when there is no other room.
        most = MOST_SHARED + 0.3 * attempt / (200 * count)
        flat = gray[top : top + side, left : left + side].std() < FLAT
        if not flat and all(_shared(box, other) <= most for other in chosen):
            chosen.append(box)
            yield box
            if len(chosen) == count:
                return


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0, width) * max(0, height)
    return common / ((one[2] - one[0]) ** 2 + (other[2] - other[0]) ** 2 - common)


def photo_crops(options: PhotoCropsOptions) -> None:
    """Write the pieces, in a folder per class, and the licences of what they were cut out of."""
    files = {photo: photo_file(photo, options.packages) for photo in PHOTOS}
    kinds = sorted({photo.kind for photo in PHOTOS})
    written, folder = 0, Path(options.output)
    with reserved_folder(folder):
        for number, photo in enumerate(PHOTOS):
            # As many of every class, divided among its photographs.
            alike = [other for other in PHOTOS if other.kind == photo.kind]
            share = _part(
                _part(options.count, len(kinds), kinds.index(photo.kind)), len(alike), alike.index(photo)
            )
            image = Image.open(files[photo]).convert("RGB")
            (folder / photo.kind).mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([options.seed, number])
            for place, box in enumerate(pieces(image, share, options.least_side, rng)):
                name = f"{Path(photo.file).stem}_{place:03d}.jpg"
                image.crop(box).save(folder / photo.kind / name, quality=95)
                written += 1
        write_text(folder / "licences.md", licences())
    say(f"{written} pieces of {len(PHOTOS)} photographs in {len(kinds)} classes: {folder}")


def _part(whole: int, parts: int, index: int) -> int:
    return whole * (index + 1) // parts - whole * index // parts


def licences() -> str:
    """A table of Markdown: every photograph with its class, its licence and who made it."""
    lines = ["| Photograph | Class | Licence | By |", "|---|---|---|---|"]
    lines += [f"| `{p.file}` | {p.kind} | {p.licence} | {p.credit} |" for p in PHOTOS]
    return "\n".join(lines) + "\n"
