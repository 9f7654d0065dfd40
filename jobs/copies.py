"""Copies of training data among samples: the closest pairs as a picture, and rows of tokens that training has seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.images import grid, to_float
from data.token_memmap import TokenMemmap
from evaluator.copies import token_copies
from evaluator.image_stream import ImageStream
from storage.arrays import ArrayFile
from storage.files import save_png
from storage.sample_store import ARRAYS

BLOCK = 1 << 14  # training rows compared at a time


def picture_path(output: str | Path, metric: str) -> Path:
    """Where the closest pairs of a metric are shown, beside a result."""
    return Path(output).with_name(f"{Path(output).stem}_{metric}.png")


def save_closest_pairs(
    path: Path, pairs: Sequence[Mapping[str, Any]], samples: ImageStream, reference: ImageStream
) -> None:
    """A PNG of `closest_pairs` of a result: samples in the upper row, the images nearest to them below.

    Both have one size, or references are shown at that of the samples.
    """
    sides = []
    for stream, key in ((samples, "sample"), (reference, "reference")):
        places = sorted({pair[key] for pair in pairs})  # streams without names go forward only
        images = dict(zip(places, stream.images(places), strict=True))
        shown = to_float(torch.stack([images[pair[key]] for pair in pairs]))
        if tuple(shown.shape[2:]) != samples.size:
            shown = torch.nn.functional.interpolate(shown, samples.size, mode="area")
        sides.append(shown)
    save_png(path, grid(torch.cat(sides), columns=len(pairs)))


def training_copies(samples: str | Path, training: str | Path) -> dict[str, Any]:
    """How many rows of tokens of a folder of `sample_imagenet.py`, or its NPZ, are rows of a token file.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: samples have no tokens, or rows of another length.
    """
    place = Path(samples) / ARRAYS if Path(samples).is_dir() else Path(samples)
    if not place.is_file() or place.suffix != ".npz":
        raise ValueError(f"training_tokens: {samples} holds no {ARRAYS}, which has the tokens of samples")
    with ArrayFile(place) as arrays:
        if "tokens" not in arrays.names:
            raise ValueError(f"training_tokens: {place} holds no tokens")
        drawn = arrays.read("tokens")
    if drawn.ndim != 2 or drawn.dtype.kind not in "iu":
        raise ValueError(
            f"training_tokens: tokens of {place} are {drawn.dtype} {list(drawn.shape)}, expected [N, L]"
        )
    tokens = TokenMemmap(path=Path(training))
    blocks = (tokens.all_crops(i, min(i + BLOCK, len(tokens))) for i in range(0, len(tokens), BLOCK))
    found = token_copies(np.asarray(drawn), (block.reshape(-1, block.shape[-1]) for block in blocks))
    return {"training": str(training), **found}
