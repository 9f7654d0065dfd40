"""Images through a tokenizer and back: pictures side by side, tokens and PSNR."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from common.console import progress, say, warn
from common.images import PixelRules, enlarge, grid, pil_to_tensor, to_float
from common.launch import processes
from data.file_list import ImageFile, list_files
from data.loaders import eval_loader
from data.source import CorruptSample, Source
from data.still import evenly_chosen, still_source
from data.transforms import CROPS
from evaluator.evaluator import Evaluator
from evaluator.float_rfid import FloatRFID, load_float_inception
from evaluator.metrics import METRICS
from evaluator.metrics.image_quality import ImageQuality
from evaluator.networks import load_networks
from evaluator.outcome import failure
from jobs.measuring import ReconstructionMeasurement
from jobs.options.reconstruct import ReconstructOptions
from modeling.pipeline import decode, encode, load_tokenizer, reconstruct_any_size
from modeling.pretrained.model_names import open_model
from modeling.pretrained.text import TextEncoder, class_captions, load_text_encoder
from modeling.tokenizers.base import Tokenizer
from storage.files import save_png, write_text
from storage.json_files import try_json
from storage.locks import reserved_folder
from training.tasks.tokenizer import side_by_side

SHOWN, SHOWN_SIDE = 64, 128  # images in one picture, pixels of a small one


@dataclass
class NamedImages:
    """A batch of images."""

    names: list[str]
    images: torch.Tensor  # uint8 [B, 3, H, W]
    captions: list[str | None]
    kinds: Counter = field(default_factory=Counter)  # files with transparent pixels, and not stored upright


def _rules(options: ReconstructOptions) -> PixelRules:
    """How files of `input` become pixels."""
    measured = options.rfid or options.quality != "rounded"
    return PixelRules(options.alpha, options.orientation or ("stored" if measured else "upright"))


def read_files(
    files: list[ImageFile], crop: Callable[[Image.Image], Image.Image], rules: PixelRules, batch_size: int
) -> Iterator[NamedImages]:
    """Cropped images of files, with the captions beside them."""
    of_results = result_names(files)
    for start in range(0, len(files), batch_size):
        names, images, captions, kinds = [], [], [], Counter()
        for file, name in zip(files[start : start + batch_size], of_results[start:], strict=False):
            try:
                decoded = file.decode(rules)
                captions.append(file.caption())
                images.append(pil_to_tensor(crop(decoded.image)))
                names.append(name)
                kinds.update(transparent_files=decoded.transparent, turned_files=decoded.orientation != 1)
            except CorruptSample as error:
                warn(f"skipped: {error}")
        if names:
            yield NamedImages(names, torch.stack(images), captions, kinds)


def result_names(files: Sequence[ImageFile]) -> list[str]:
    """Names of the results: a.jpg and a.png give a_jpg and a_png; one that is taken gets a number."""
    names: dict[str, None] = {}  # in order
    for file in files:
        plain = free = file.name.replace(".", "_")
        number = 1
        while free in names:  # a.b.png and a_b.png, or shards of one name in two folders
            number += 1
            free = f"{plain}_{number}"
        names[free] = None
    return list(names)


def read_source(source: Source, count: int, batch_size: int) -> Iterator[NamedImages]:
    """`count` evenly chosen examples of a data set, named by position, with captions of the data set or the class."""
    by_class = class_captions(source.class_names)
    for batch in eval_loader(evenly_chosen(source, count), batch_size=batch_size):
        for name in batch["skipped"]:
            warn(f"skipped: {name}")
        if len(batch["images"]):
            names = [f"{i * len(source) // count:06d}" for i in batch["positions"].tolist()]
            captions = batch.get("captions", [by_class[label] for label in batch["labels"].tolist()])
            yield NamedImages(names, batch["images"], captions)


def open_images(
    options: ReconstructOptions, config: dict, image_size: int
) -> tuple[int, Iterator[NamedImages]]:
    """The number of images, and an iterator over batches of them."""
    if options.input is None:
        source = still_source(options.data, split=options.split, config=config, image_size=image_size)
        count = min(len(source), options.max_images or len(source))
        return count, read_source(source, count, options.batch_size)
    files = list_files(options.input)
    count = min(len(files), options.max_images or len(files))
    files = [files[i * len(files) // count] for i in range(count)]  # a folder in order keeps all its classes
    check_sizes(files, options.max_pixels if options.original_size else None, options.quality)
    if options.original_size:
        return len(files), read_files(files, lambda image: image, _rules(options), 1)
    crop = partial(CROPS[options.resize], size=image_size)
    return len(files), read_files(files, crop, _rules(options), options.batch_size)


def check_sizes(files: list[ImageFile], max_pixels: int | None, quality: str) -> None:
    """Raise ValueError for an image of more than `max_pixels`, too many to be decoded, or too few for SSIM, before any
    work; `max_pixels` is None where images are resized.
    """
    for file in progress(files, "reading sizes", total=len(files), unit="image", delay=3.0):
        try:
            width, height = file.size()
        except CorruptSample:
            continue  # `read_files` warns about it
        small = None if max_pixels is None else METRICS["ssim"].too_small(min(width, height), quality)
        if small:
            raise ValueError(f"{file.name} has {height} x {width} pixels: {small}")
        if max_pixels is not None and width * height > max_pixels:
            needed = f"A VQGAN of 128 channels needs about {3.5e-6 * width * height:.0f} GB in float32"
            raise ValueError(
                f"{file.name} has {height} x {width} pixels, more than max_pixels={max_pixels}. {needed}: set a larger"
                " max_pixels, or original_size=false to resize and crop"
            )


def embed(encoder: TextEncoder | None, batch: NamedImages, caption: str | None) -> torch.Tensor | None:
    """Text embeddings of a batch, None without an encoder; raises ValueError if an image has no caption."""
    if encoder is None:
        return None
    captions = [caption or own for own in batch.captions]
    if None in captions:
        name = batch.names[captions.index(None)]
        raise ValueError(f"{name} has no caption; give caption=... for all, or a .txt file beside each image")
    return encoder.encode(captions)


def open_measurement(
    options: ReconstructOptions, tokenizer: Tokenizer, device: torch.device
) -> ReconstructionMeasurement:
    """Measures the use of the codebook, and rFID if the options ask for it."""
    evaluator = float_rfid = None
    if options.rfid and options.quality == "seed_voken":
        network = load_float_inception(options.inception_weights, device=device)
        float_rfid = FloatRFID(extractor=network, device=device)
    elif options.rfid:
        networks = load_networks(["rfid"], {"inception": options.inception_weights}, device=device)
        evaluator = Evaluator(networks=networks, metrics=["rfid"], protocol="tokenizer", device=device)
    codes = tokenizer.codebook_size
    return ReconstructionMeasurement(evaluator, float_rfid=float_rfid, codebook_size=codes, device=device)


def reconstruct(options: ReconstructOptions) -> None:
    """Reconstruct all images and write pictures, tokens and measurements."""
    with processes() as device, reserved_folder(options.output):
        config = open_model(options.tokenizer, "tokenizer").config
        tokenizer = load_tokenizer(options.tokenizer, device, precision=options.precision)
        encoder = load_text_encoder(options.text_encoder, device) if tokenizer.needs_text else None
        total, batches = open_images(options, config, tokenizer.image_size)
        folder = Path(options.output)
        measurement = open_measurement(options, tokenizer, device)
        quality = ImageQuality(protocol=options.quality)
        remove_old(folder)
        records, latents, shown, kinds = [], [], [], Counter()
        bar = progress(None, "reconstructing", total=total, unit="image")
        for batch in batches:
            images = to_float(batch.images.to(device))
            if options.original_size:
                tokens, results = reconstruct_any_size(tokenizer, images)
            else:
                tokens = encode(tokenizer, images)
                results = decode(tokenizer, tokens, embed(encoder, batch, options.caption))
            measurement.update(results, images, tokens)
            every = quality.update(images, results)["psnr"]
            for name, psnr, row in zip(batch.names, every, tokens.cpu(), strict=True):
                record = {"image": name, "psnr": round(psnr.item(), 3)}
                records.append(record | {"tokens": row.tolist()} if tokenizer.is_discrete else record)
                latents += [] if tokenizer.is_discrete else [row]
            pair = (images.cpu(), results.cpu())
            if options.png:
                write_pairs(folder, batch.names, *pair)
            if len(shown) < SHOWN:
                shown += list(zip(*(map(thumbnails, pair) if options.original_size else pair), strict=True))
            kinds.update(batch.kinds)
            bar.update(len(images))
        bar.close()
        if not records:
            raise ValueError(f"none of the {total} images can be read")
        values, errors = measurement.outcome()
        measured = quality.result() | values
        # Printed first: if the files cannot be written after all, the numbers are there.
        say(" | ".join(f"{name} {value:.4g}" for name, value in measured.items()))
        pairs = [torch.stack(side) for side in zip(*shown[:SHOWN], strict=True)]
        save_png(folder / "reconstructions.png", side_by_side(*pairs))
        about = {} if options.precision == "float32" else {"precision": options.precision}
        if options.input is not None:
            about |= asdict(_rules(options)) | kinds
        write_report(folder, records, latents, {"mean": measured, **about})
        bits = "" if tokenizer.bits_per_image is None else f" ({tokenizer.bits_per_image:.0f} bits)"
        each = f"{tokenizer.num_tokens} tokens{bits} each"
        say(f"{len(records)} images as {'tokens for their own sizes' if options.original_size else each}")
        for key, what in (("transparent_files", "alpha"), ("turned_files", "orientation")):
            if kinds[key]:
                say(f"{kinds[key]} {key.replace('_', ' ')}: {what}={about[what]}")
        say(f"see {folder}")
        if errors:
            raise ValueError(failure(errors))


def remove_old(folder: Path) -> None:
    """Remove what an earlier call has written to a folder, which then holds the results of one."""
    report = folder / "reconstructions.json"
    if not report.is_file():
        return
    images = try_json(report, images=list).get("images", [])
    say(f"{folder} holds earlier reconstructions of {len(images)} images, which are replaced")
    # Samples in the same folder may be called as examples of a data set are, by number.
    own = not (folder / "samples.json").exists()
    pictures = [folder / f"{image['image']}.png" for image in images if own]
    for path in (report, folder / "reconstructions.png", folder / "latents.npy", *pictures):
        if path.resolve().is_relative_to(folder.resolve()):  # names in a file may be anything
            path.unlink(missing_ok=True)


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] of any size in white squares [B, 3, SHOWN_SIDE, SHOWN_SIDE]."""
    scale = SHOWN_SIDE / max(images.shape[-2:])
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return F.pad(images, (0, SHOWN_SIDE - size[1], 0, SHOWN_SIDE - size[0]), value=1.0)


def write_pairs(folder: Path, names: list[str], images: torch.Tensor, results: torch.Tensor) -> None:
    """One PNG per image: left the image, right its reconstruction, small ones enlarged."""
    factor = max(1, SHOWN_SIDE // images.shape[-1])
    for name, image, result in zip(names, images, results, strict=True):
        save_png(folder / f"{name}.png", grid(enlarge(torch.stack([image, result]), factor), columns=2))


def write_report(
    folder: Path, records: list[dict[str, Any]], latents: list[torch.Tensor], whole: dict[str, Any]
) -> None:
    """Write reconstructions.json: lines of `whole`, then a line per image. Latents of one size go to latents.npy."""
    if len({latent.shape for latent in latents}) == 1:  # none of discrete tokenizers
        np.save(folder / "latents.npy", torch.stack(latents).numpy())
    lines = ",\n".join(json.dumps(record) for record in records)
    head = "".join(f'"{key}": {json.dumps(value)},\n' for key, value in whole.items())
    text = f'{{{head}"images": [\n{lines}\n]}}\n'
    write_text(folder / "reconstructions.json", text)
