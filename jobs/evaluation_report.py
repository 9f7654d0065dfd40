"""What an evaluation shows people: the numbers in aligned lines, and a picture of what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from common import distributed
from common.image_rows import GRID_SIDE, named_rows
from common.images import enlarge, grid, to_float, to_uint8
from evaluator.image_stream import ImageStream
from evaluator.metrics.image_quality import psnr
from evaluator.result_names import direction, is_spread, networks_behind
from storage.files import save_png

SEED = 0  # of the choice of samples: the same in every evaluation of as many images
SAMPLE_ROWS = 4
_PAIRED = ("psnr", "ssim", "lpips")


class Pair(NamedTuple):
    """One image with its original, uint8 [3, H, W]."""

    psnr: float
    position: int
    original: torch.Tensor
    result: torch.Tensor


def report_lines(values: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, str]:
    """Per number: value, spread if it has one, which way is better, and what it is compared with."""
    names = [name for name in values if not is_spread(name) or name.removesuffix("_std") not in values]
    numbers = {name: f"{values[name]:.6g}" for name in names}
    spreads = {name: f"± {values[f'{name}_std']:.2g}" if f"{name}_std" in values else "" for name in names}
    width, spread = (max(map(len, texts.values()), default=0) for texts in (numbers, spreads))
    reference = facts.get("reference") or {}
    shown = {"originals": "the originals", "images": "the reference images"}
    against = shown.get(reference.get("image_set"), f"{reference.get('image_set')} images")
    lines = {}
    for name in names:
        better = f"{direction(name)} is better" if direction(name) else ""
        alone = not reference or name.startswith(("is", "codebook"))
        seen = networks_behind(name)
        where = (
            ""
            if not seen or name.startswith("lpips")
            else f"in {seen[0] if len(seen) == 1 else 'six spaces'}"
        )
        to = "" if alone else f"against {'the originals' if name.startswith(_PAIRED) else against}"
        columns = (numbers[name].rjust(width), spreads[name].ljust(spread), better.ljust(16), f"{to} {where}")
        lines[name] = "  ".join(part for part in columns if part or spread).rstrip()
    return lines


class PairPictures:
    """Keeps some pairs of a pass: a seeded choice, the worst and the best by PSNR; memory holds `count` of each.

    Args:
        count: pairs of each kind.
        total: number of pairs over all processes.
    """

    def __init__(self, count: int, total: int) -> None:
        self.count = min(count, total)
        self._wanted = set(seeded_choice(total, self.count))
        self._chosen: list[Pair] = []
        self._worst: list[Pair] = []
        self._best: list[Pair] = []

    def update(self, results: torch.Tensor, originals: torch.Tensor, positions: torch.Tensor) -> None:
        """Add pairs [B, 3, H, W], uint8 or floats in [0, 1], at positions int64 [B]."""
        if not self.count:
            return
        # As they are stored, so that a picture shows what its number says.
        stored = [(x if x.dtype == torch.uint8 else to_uint8(x)).cpu() for x in (originals, results)]
        found = psnr(*(to_float(x) for x in stored), guard=1e-6).tolist()
        pairs = [Pair(*row) for row in zip(found, positions.tolist(), *stored, strict=True)]
        self._chosen += [pair for pair in pairs if pair.position in self._wanted]
        self._worst = self._ends(self._worst + pairs)
        self._best = self._ends(self._best + pairs, best=True)

    def _ends(self, pairs: list[Pair], best: bool = False) -> list[Pair]:
        sign = -1 if best else 1
        return sorted(pairs, key=lambda pair: (sign * pair.psnr, pair.position))[: self.count]

    def picture(self) -> torch.Tensor | None:
        """Originals above their reconstructions, float [3, h, w]; None without pairs. All processes call it."""
        everyone = distributed.gather_objects((self._chosen, self._worst, self._best))
        chosen, worst, best = (
            [pair for some in part for pair in some] for part in zip(*everyone, strict=True)
        )
        if not chosen:
            return None
        rows: list[tuple[str, list[Pair]]] = [
            ("chosen by seed", sorted(chosen, key=lambda pair: pair.position))
        ]
        rows += [("worst", self._ends(worst)), ("best", self._ends(best, best=True))]
        images, names = [], []
        for name, pairs in rows:
            images += [pair.original for pair in pairs] + [pair.result for pair in pairs]
            ends = sorted((pairs[0].psnr, pairs[-1].psnr))
            names += [name, "" if name == rows[0][0] else f"{ends[0]:.1f} to {ends[1]:.1f} dB"]
        shown = to_float(torch.stack(images))
        return named_rows(enlarge(shown, max(1, GRID_SIDE // shown.shape[-1])), names)


def seeded_choice(total: int, count: int) -> list[int]:
    """`count` of `total` positions, increasing; the same for the same numbers."""
    return sorted(np.random.default_rng(SEED).choice(total, min(count, total), replace=False).tolist())


def sample_picture(samples: ImageStream, columns: int) -> torch.Tensor:
    """A grid of a seeded choice of samples, float [3, h, w]."""
    chosen = seeded_choice(samples.count, columns * SAMPLE_ROWS)
    images = to_float(torch.stack(list(samples.images(chosen))))
    return grid(enlarge(images, max(1, GRID_SIDE // images.shape[-1])), columns)


def pictures_path(output: str | Path) -> Path:
    """Where the picture of a result lies: beside it."""
    return Path(output).with_name(f"{Path(output).stem}_pictures.png")


def write_pictures(
    output: str | Path, pairs: PairPictures | None, samples: ImageStream, columns: int
) -> Path | None:
    """Write the picture of a measurement and return its path, None with 0 columns; all processes call it."""
    if not columns:
        return None
    path, picture = pictures_path(output), None if pairs is None else pairs.picture()

    def write() -> None:
        save_png(path, sample_picture(samples, columns) if picture is None else picture)

    distributed.on_main(write)
    return path
