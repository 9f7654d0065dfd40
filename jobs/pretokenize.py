"""The images of a data set as a token file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from common.config import first_difference
from common.console import Clock, banner, duration, say, warn
from common.images import PixelRules, to_float
from common.launch import processes
from data.source import Source
from data.still import Part, loading_options, share_batches, still_source
from data.token_memmap import TokenHeader, TokenMemmap, TokenWriter
from data.transforms import ten_crop, ten_crop_side
from evaluator.codebook_usage import CodebookUsage
from jobs.options.pretokenize import PretokenizeOptions
from modeling.pipeline import load_tokenizer
from modeling.pretrained.model_names import open_model, shown_name
from modeling.tokenizers.base import Tokenizer
from storage.locks import reserved_file
from storage.rows import differences
from storage.weights import weight_hash

PLACES = ("path", "cache", "cache_folder")  # options of data sets that say where things are
NUM_CROPS = {"plain": 1, "flip": 2, "ten_crop": 10}


def make_crops(images: torch.Tensor, crops: str, image_size: int) -> torch.Tensor:
    """Versions of images [B, 3, R, R]: [B, NUM_CROPS[crops], 3, image_size, image_size]."""
    if crops == "ten_crop":
        return ten_crop(images, image_size)
    return images[:, None] if crops == "plain" else torch.stack([images, images.flip(-1)], dim=1)


def open_source(options: PretokenizeOptions, image_size: int) -> Source:
    """The images at the size that the crops need."""
    side = ten_crop_side(image_size) if options.crops == "ten_crop" else image_size
    section, config = options.data or {}, open_model(options.tokenizer, "tokenizer").config
    # ADM's crop is the usual one for tokens that generators train on; a data section may name another.
    resize = {
        "resize": section.get("resize", "adm"),
        "resize_shorter_edge": section.get("resize_shorter_edge"),
    }
    return still_source(options.data, split=options.split, config=config, image_size=side, **resize)


def data_facts(options: PretokenizeOptions) -> dict[str, Any]:
    """What the data section says of the pixels; where the images lie may change, their labels are compared."""
    config = open_model(options.tokenizer, "tokenizer").config
    section = options.data or (config.get("data") or {}).get(options.split) or {}
    return {
        key: value for key, value in section.items() if key not in PLACES and not key.startswith("random_")
    }


def begun(output: Path, header: TokenHeader, source: Source) -> TokenHeader | None:
    """The header of what an interrupted job has written; raises ValueError if those are other tokens."""
    found = TokenWriter.unfinished(output)
    if found is None:
        return None
    other = difference(found, header)
    if not other:
        labels = np.asarray(TokenWriter.unfinished_labels(output))
        written = labels >= 0
        if not np.array_equal(labels[written], np.asarray(source.labels)[written]):
            other = "other images"
    if other:
        advice = "go on with those, or overwrite=true begins anew"
        raise ValueError(f"{output} was begun with other settings ({other}); {advice}")
    return found


def is_done(output: Path, header: TokenHeader, source: Source, overwrite: bool) -> bool:
    """Whether the file holds these tokens; raises ValueError if it holds others, unless `overwrite` is set."""
    if not output.exists():
        return False
    try:
        found = TokenMemmap(path=output)
    except ValueError:  # damaged, or not a token file
        if overwrite:
            return False
        raise
    other = difference(found.header, header)
    if not other and len(found) == len(source) and not np.array_equal(found.labels, source.labels):
        other = "other images"
    if other and not overwrite:
        raise ValueError(f"{output} holds other tokens ({other}); overwrite=true replaces it")
    return not other


def difference(found: TokenHeader, wanted: TokenHeader) -> str:
    """What tokens differ in, '' if they do not; the tokenizer counts by its weights, and its name may change."""
    old, new = (asdict(header) | {"tokenizer": ""} for header in (found, wanted))
    held, data = old.pop("data"), new.pop("data")
    # Files from before headers had the section have none.
    return differences(old, new) or (first_difference(held, data, "data") or "" if held else "")


def tokenize(
    tokenizer: Tokenizer,
    source: Source,
    writer: TokenWriter,
    options: PretokenizeOptions,
    device: torch.device,
) -> CodebookUsage:
    """Fill this process's share of the missing rows; returns the use of the codes."""
    missing = writer.missing_rows()
    distributed.barrier()  # all processes find the same rows missing before one of them writes
    usage, skipped = CodebookUsage(writer.header.codebook_size), []
    loading = loading_options(options)
    for batch in share_batches(Part(source, missing), "tokenizing", **loading):
        skipped += batch["skipped"]
        if len(batch["labels"]):
            images = make_crops(to_float(batch["images"].to(device)), options.crops, writer.header.image_size)
            tokens = tokenizer.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]).cpu()
            writer.write(missing[batch["positions"].numpy()], tokens.numpy(), batch["labels"].numpy())
            usage.update(tokens)
    writer.close()
    for name in (name for names in distributed.gather_objects(skipped) for name in names):
        warn(f"skipped {name}")
    return usage


def pretokenize(options: PretokenizeOptions) -> None:
    """Write the token file, or the rows that an interrupted job left out."""
    with processes() as device, reserved_file(options.output):
        tokenizer = load_tokenizer(options.tokenizer, device, precision=options.precision)
        if tokenizer.codebook_size is None:
            name = shown_name(options.tokenizer)
            raise ValueError(f"{name} has a continuous bottleneck; only discrete tokens can be stored")
        source, output = open_source(options, tokenizer.image_size), Path(options.output)
        header = TokenHeader(
            num_images=len(source),
            crops=NUM_CROPS[options.crops],
            num_tokens=tokenizer.num_tokens,
            codebook_size=tokenizer.codebook_size,
            tokenizer=shown_name(options.tokenizer),
            weight_hash=weight_hash(tokenizer),
            image_size=tokenizer.image_size,
            class_names=list(source.class_names),
            precision=options.precision,
            **asdict(source.rules or PixelRules()),
            data=data_facts(options),
        )
        known = None if options.overwrite else begun(output, header, source)
        if is_done(output, header, source, options.overwrite):
            say(f"{output} already holds the tokens of these {len(source)} images; nothing to do")
            return
        devices = f"{distributed.world_size()} x {device.type}"
        banner("Tokenizing", {**vars(options), "images": len(source), "devices": devices})
        distributed.on_main(
            lambda: TokenWriter.create(output, known or header)
        )  # or finds the unfinished file
        clock = Clock()
        measured = tokenize(tokenizer, source, TokenWriter(output), options, device).result(device)
        seconds = clock.lap()
        if not distributed.is_main():
            return
        missing = TokenWriter.finish(output)
        unread = f", {missing} unreadable ones left out" if missing else ""
        shape = f"{len(source) - missing} images x {header.crops} crops x {header.num_tokens} tokens"
        say(f"{shape} in {duration(seconds)}{unread}: {output}")
        bits = f"{header.num_tokens * np.log2(header.codebook_size):.0f} bits per image"
        usage = f"codebook usage {measured['codebook_usage']:.1%} of {header.codebook_size}"
        say(f"{bits} | {usage} | perplexity {measured['codebook_perplexity']:.1f}")
