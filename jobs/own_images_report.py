"""What came out of own images: figures, curves, a picture, and how many samples are copies of training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.console import banner, printable
from common.image_rows import GRID_COLUMNS, named_rows
from common.images import enlarge, to_float
from data.still import evenly_chosen, still_source
from data.token_memmap import TokenMemmap
from jobs.options.own_images import OwnImagesOptions
from jobs.own_images_plan import Chosen
from modeling.pipeline import load_tokenizer, reconstruct
from modeling.pretrained.model_names import open_model
from storage.arrays import ArrayFile
from storage.files import save_png, write_json, write_text
from storage.json_files import read_json
from training.curves import draw_curves, read_curves

SHOWN_CLASSES, SHOWN_SIDE = 10, 96
_CHUNK = 4096  # training images at a time


@dataclass(frozen=True)
class Copies:
    """How near samples are to training images, by their tokens."""

    samples: int
    copies: int  # with the tokens of a training image, or of one of its crops, all equal
    nearest: float  # share of tokens that a sample has in common with its nearest training image, on average

    @property
    def text(self) -> str:
        """As a sentence part."""
        return (
            f"{self.copies} of {self.samples} ({self.copies / self.samples:.1%}) have all tokens of a training image;"
            f" with the nearest one a sample shares {self.nearest:.0%} of its tokens on average"
        )


def find_copies(samples: np.ndarray, training: TokenMemmap) -> Copies:
    """Compare samples int64 [n, N] with every crop of every training image, token by token at the same place."""
    nearest = np.zeros(len(samples))
    for start in range(0, len(training), _CHUNK):
        stop = min(start + _CHUNK, len(training))
        rows = training.all_crops(start, stop).reshape(-1, samples.shape[1])
        for index, sample in enumerate(samples):
            nearest[index] = max(nearest[index], (rows == sample).mean(axis=1).max())
    return Copies(len(samples), int((nearest == 1).sum()), float(nearest.mean()))


def draw_picture(
    options: OwnImagesOptions, images: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> None:
    """Write picture.png: held-out images above their reconstructions, and a row of samples per class."""
    model = str(options.folder / "titok" / "best")
    tokenizer = load_tokenizer(model)
    config = open_model(model, "tokenizer").config
    source = still_source(None, split="validation", config=config, image_size=tokenizer.image_size)
    source = evenly_chosen(source, min(2 * GRID_COLUMNS, len(source)))
    rng = np.random.default_rng(0)
    held_out = to_float(torch.stack([source.load(index, rng)[0] for index in range(len(source))]))
    again = reconstruct(tokenizer, held_out)
    rows: dict[str, torch.Tensor] = {}
    for number, start in enumerate(range(0, len(held_out), GRID_COLUMNS)):
        part = slice(start, start + GRID_COLUMNS)
        rows[f"held out {number + 1}"] = held_out[part]
        rows[f"from {tokenizer.num_tokens} tokens {number + 1}"] = again[part]
    for label in np.unique(labels)[:SHOWN_CLASSES]:
        drawn = images[labels == label][:GRID_COLUMNS]
        rows[f"new: {printable(str(names[label]))}"] = to_float(torch.from_numpy(drawn).permute(0, 3, 1, 2))
    side = tokenizer.image_size
    white = torch.ones(GRID_COLUMNS, 3, side, side)
    full = [torch.cat([row, white[len(row) :]]) for row in rows.values()]
    picture = named_rows(enlarge(torch.cat(full), max(1, SHOWN_SIDE // side)), list(rows))
    save_png(options.folder / "picture.png", picture)


def write_report(options: OwnImagesOptions, chosen: Chosen, commands: Sequence[str]) -> None:
    """Write report.md, report.json, picture.png and curves.png, and print the figures."""
    folder, kind = options.folder, options.generator
    with ArrayFile(folder / "samples" / "samples.npz") as drawn:
        images, labels, tokens = (drawn.read(name) for name in ("arr_0", "labels", "tokens"))
    copies = find_copies(tokens, TokenMemmap(path=folder / "train.tokens"))
    draw_picture(options, images, labels, chosen.class_names)
    draw_curves({"tokenizer": folder / "titok", "generator": folder / kind}, folder / "curves.png")
    number = (int, float)
    tokenizer = read_json(
        folder / "titok" / "best" / "metrics.json", psnr=number, codebook_usage=number, step=int
    )
    generator = read_json(folder / kind / "best" / "metrics.json", loss=number, step=int)
    last = read_json(folder / kind / "metrics.json", loss=number)
    result = {
        "images": {"train": chosen.train_images, "validation": chosen.validation_images},
        "tokenizer": tokenizer,
        "generator": generator,
        "generator_at_the_end": last,
        "copies": vars(copies),
    }
    write_json(folder / "report.json", result)
    rows = figures(chosen, result, copies)
    learned_by_heart = [read_curves(folder / name).over_fitting() for name in ("titok", kind)]
    notes = [f"{note[0].upper()}{note[1:]}." for note in learned_by_heart if note]
    write_text(folder / "report.md", page(rows, commands, [*notes, *advice(chosen, copies)]))
    banner("Own images", rows)


def figures(chosen: Chosen, result: Mapping[str, Any], copies: Copies) -> dict[str, str]:
    """A name and a text for every figure."""
    tokenizer, generator = result["tokenizer"], result["generator"]
    return {
        "images": f"{chosen.train_images:,} to train on, {chosen.validation_images:,} held out",
        "tokenizer": f"PSNR {tokenizer['psnr']:.2f} dB on held-out images, {tokenizer['codebook_usage']:.0%} of the"
        f" codes used; best of {chosen.tokenizer_steps:,} steps: {tokenizer['step']:,}",
        "generator": f"{generator['loss']:.2f} nats per held-out token; best of {chosen.generator_steps:,} steps:"
        f" {generator['step']:,}, loss of the last evaluation {result['generator_at_the_end']['loss']:.2f}",
        "copies": copies.text,
    }


def advice(chosen: Chosen, copies: Copies) -> list[str]:
    """What would help, in sentences."""
    lines = []
    if chosen.train_images < 1000:
        lines.append(
            f"{chosen.train_images:,} images are few: a generator mostly learns to vary them. More images help more"
            " than more time."
        )
    if copies.copies > 0.05 * copies.samples:
        lines.append("Many samples are copies: train the generator for fewer steps, or with more dropout.")
    lines.append("More time gives sharper reconstructions: minutes=120 with another output.")
    return lines


def page(rows: Mapping[str, str], commands: Sequence[str], notes: Sequence[str]) -> str:
    """The report as Markdown."""
    lines = [
        "# Own images",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in rows.items()),
    ]
    lines += ["", "![held-out images above their reconstructions, and new images](picture.png)"]
    lines += ["", "What the images are like: [data/inspection.md](data/inspection.md).", "", *notes]
    lines += ["", "## Curves", "", "![curves of both trainings](curves.png)"]
    lines += ["", "## Commands", "", "```bash", *commands, "```"]
    return "\n".join(lines) + "\n"
