"""What `scripts/own_images.py` chooses for a device and a number of images: the table of docs/own_images.md."""

import math
from dataclasses import dataclass, fields
from typing import Literal

Crops = Literal["plain", "flip", "ten_crop"]


@dataclass(frozen=True)
class ForDevice:
    """What the device decides."""

    device: Literal["cpu", "gpu"]
    recipes: str  # name below configs/titok, configs/rar and configs/maskgit
    image_size: int
    tokenizer_time: float  # share of the minutes for training the tokenizer
    generator_time: float  # likewise; the rest is for start-up, evaluation, tokens, samples and the report


@dataclass(frozen=True)
class ForImages:
    """What the number of training images decides: the fewer, the more they are varied, and the shorter is training."""

    up_to: int | None  # training images; None: any number
    random_area: float  # least share of an image that the tokenizer sees of it
    crops: Crops  # versions of an image that the generator learns
    dropout: float  # of the generator; uvit has none
    tokenizer_passes: int  # over the images, at most
    generator_passes: int  # likewise; held-out loss stops it earlier
    patience: int  # evaluations of the generator without a better held-out loss


DEVICES = (
    ForDevice("cpu", "images_cpu", 64, 0.55, 0.25),
    ForDevice("gpu", "images_gpu", 128, 0.6, 0.3),
)
IMAGES = (
    ForImages(300, 0.5, "ten_crop", 0.3, 600, 200, 8),
    ForImages(3_000, 0.7, "ten_crop", 0.2, 300, 200, 8),
    ForImages(30_000, 0.8, "ten_crop", 0.1, 100, 100, 8),
    ForImages(None, 0.9, "flip", 0.1, 40, 60, 8),
)
FEWEST_STEPS = 100  # of a training; below it a model shows nothing
EVALUATIONS = {"titok": 8, "generator": 20}  # of a training
# PSNR of held-out pieces of photographs after a whole run of as many tokenizer steps (64 x 64; docs/own_images.md).
EXPECTED = {1_000: 20.9, 6_000: 24.8}


def for_device(device: str) -> ForDevice:
    """The row of a device."""
    return next(row for row in DEVICES if row.device == device)


def for_images(count: int) -> ForImages:
    """The row of a number of training images."""
    return next(row for row in IMAGES if row.up_to is None or count <= row.up_to)


def steps_for(seconds: float, seconds_per_step: float, *, images: int, batch: int, passes: int) -> int:
    """Updates that fit into a time, and not more than `passes` over the images; a multiple of 10."""
    most = math.ceil(passes * images / batch)
    return max(FEWEST_STEPS, min(int(seconds / seconds_per_step), most) // 10 * 10)


def expected_psnr(steps: int) -> str | None:
    """What to expect of held-out reconstructions on a CPU, in words; None for fewer steps than were measured."""
    known = [(least, psnr) for least, psnr in EXPECTED.items() if steps >= least]
    if not known:
        return None
    least, psnr = known[-1]
    return f"about {psnr:.0f} dB PSNR or more on held-out images: pieces of photographs had {psnr} dB in {least} steps"


def markdown() -> str:
    """Both parts of the table, as docs/own_images.md shows them."""
    return _table(DEVICES) + "\n" + _table(IMAGES)


def _table(rows: tuple) -> str:
    names = [field.name for field in fields(rows[0])]
    lines = [f"| {' | '.join(f'`{name}`' for name in names)} |", "|" + "---|" * len(names)]
    for row in rows:
        cells = ["any" if (value := getattr(row, name)) is None else _shown(value) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
