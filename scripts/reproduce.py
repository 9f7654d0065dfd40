"""Measure a released model as its authors did, and put the result beside what they published.

    python scripts/reproduce.py model=rar-b reference=VIRTUAL_imagenet256_labeled.npz output=runs/reproduce/rar_b
    python scripts/reproduce.py model=titok-l32 images='val-{000000..000049}.tar' output=runs/reproduce/titok_l32
    torchrun --nproc_per_node 8 scripts/reproduce.py model=rar-xl reference=ref.npz output=runs/reproduce/rar_xl

A generator draws class-balanced samples with its published settings into output/samples and is measured against the
reference (adm protocol). A tokenizer reconstructs the validation images (shorter edge to its size, bicubic, centre
crop; LlamaGen: ADM's crop) and is compared with these in one pass (tokenizer protocol); TA-TiTok reads the caption
of each image's class. What is missing is listed before any work. An interrupted job goes on where it stopped, a
finished one is not repeated.
output/result.json holds the numbers and how they came about.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from common import distributed
from common.config import find_file, first_difference, option, run_script, to_tree
from common.console import Clock, duration, say, warn
from common.files import write_text
from common.images import to_float
from common.launch import processes
from common.requirements import require_all, require_files
from common.weights import weight_hash
from data.loaders import eval_loader
from data.source import Source
from data.still import Part, still_source
from evaluator import protocol as protocols
from evaluator.codebook_usage import CodebookUsage
from evaluator.evaluator import Evaluator
from evaluator.image_files import open_images
from evaluator.images import ImageStream, digest_lines
from evaluator.inception_weights import find_inception_weights
from evaluator.reference import image_reference
from modeling.pipeline import decode, load_tokenizer
from modeling.pretrained.catalog import RAR, TITOK, find_release
from modeling.pretrained.references import open_model
from modeling.pretrained.release import Release, imagenet_classes
from modeling.pretrained.text import class_captions, load_text_encoder
from modeling.sample_job import SampleOptions, draw_samples
from modeling.tokenizers.base import Tokenizer
from scripts.evaluate import CROPS, EvaluateOptions, Run, batches, load_extractors

REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256"
REFERENCE_URL = f"{ADM}/{REFERENCE}"
TABLE = ("gfid", "rfid", "sfid", "is", "precision", "recall", "psnr", "ssim", "codebook_usage")
CATALOG = {"is": "inception_score"}  # where the catalog calls a metric otherwise
TOLERANCE = 0.05  # published FIDs have two digits
FREE = ("output", "batch_size", "overwrite")  # options that change no number


@dataclass(kw_only=True)
class ReproduceOptions:
    """Which model, with what, to where."""

    model: str = option(help="name of a released model (docs/models.md)")
    output: str = option(help="folder for result.json and a generator's samples")
    reference: str | None = option(None, f"generators: {REFERENCE}, or images")
    images: str | None = option(None, "tokenizers: validation images, a folder, .npz or 'val-{00..49}.tar'")
    data: dict | None = option(None, "tokenizers, instead: section like data.validation; null = the run's")
    num_samples: int = option(50_000, "samples to draw; of a tokenizer's images, the first ones at most")
    seed: int = option(0, "of the samples")
    batch_size: int = option(64, "per process")
    inception_weights: str | None = option(None, "file; null = INCEPTION_WEIGHTS, torch's cache, or download")
    precision: Literal["float64", "float32", "bfloat16"] = option("float32", "bfloat16 is approximate")
    text_encoder: str | None = option(None, "tatitok: weights of the CLIP text tower; null = from the hub")
    overwrite: bool = option(False, "measure again; replace samples made with other settings")

    def __post_init__(self) -> None:
        for key, least in (("num_samples", 2), ("batch_size", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {least}")
        if self.images is not None and self.data is not None:
            raise ValueError("images and data are both given; choose one")

    @property
    def result_file(self) -> Path:
        """Where the result goes."""
        return Path(self.output).expanduser() / "result.json"

    @property
    def settings(self) -> dict[str, Any]:
        """The options that a result depends on."""
        return {key: value for key, value in to_tree(self).items() if key not in FREE}

    def evaluation(self, **options: Any) -> EvaluateOptions:
        """What `scripts/evaluate.py` would be told."""
        shared = ("inception_weights", "precision", "batch_size")
        return EvaluateOptions(**{key: getattr(self, key) for key in shared}, **options)


def check_kind(options: ReproduceOptions, release: Release) -> None:
    """Refuse options that belong to the other kind of model."""
    wrong = ("images", "data", "text_encoder") if release.kind == "generator" else ("reference",)
    for key in wrong:
        if getattr(options, key) is not None:
            takes = "a reference" if release.kind == "generator" else "validation images, its own reference"
            raise ValueError(f"{key} is given, but {release.name} is a {release.kind}, which takes {takes}")


def pieces(options: ReproduceOptions, release: Release) -> dict[str, Callable[[], Any]]:
    """Everything that has to be on this machine, with a function that finds or downloads it, or raises.

    What only the user can supply comes first, so that it is known before a long download.
    """
    needed: dict[str, Callable[[], Any]] = {}
    if release.kind == "generator":
        needed["reference"] = partial(find_reference, options, release)
    else:
        needed["validation images"] = partial(find_validation, options, release)
    needed["inception weights"] = partial(find_inception_weights, options.inception_weights)
    if reads_text(release):
        needed["text encoder"] = partial(load_text_encoder, options.text_encoder)
    needed[f"weights of {release.name}"] = partial(open_model, release.name, release.kind)
    if release.tokenizer is not None:
        needed[f"weights of {release.tokenizer}"] = partial(open_model, release.tokenizer, "tokenizer")
    return needed


def reads_text(release: Release) -> bool:
    """Whether the model is a tokenizer whose decoder reads captions."""
    if release.kind == "generator":
        return False
    section = release.section or open_model(release.name, "tokenizer").section("tokenizer")
    return section["name"] == "tatitok"


def find_reference(options: ReproduceOptions, release: Release) -> None:
    """Raise FileNotFoundError unless the reference is there."""
    advice = REFERENCE_URL if release.folder is None else "statistics or images"
    if options.reference is None:
        raise FileNotFoundError(f"reference=FILE is not given; get {advice} and name it by reference=FILE")
    require_files(options.reference, advice)


def crop_of(model: str) -> str:
    """The crop that a tokenizer was published with, of `scripts.evaluate.CROPS`."""
    return "adm" if model.startswith("llamagen") else "shorter_edge"


def find_validation(options: ReproduceOptions, release: Release) -> None:
    """Raise OSError or ValueError unless the validation images are named and there."""
    advice = (
        "the 50,000 validation images of ImageNet (ILSVRC2012_img_val.tar, image-net.org) as a folder or tar"
        " shards: images=PATH or images='val-{000000..000049}.tar', or a section data.name=... data.path=..."
    )
    if options.images is not None:
        require_files(options.images, advice)
    elif options.data is not None:
        paths = options.data.get("path") or []
        for path in [paths] if isinstance(paths, str) else paths:
            require_files(path, advice)
    elif release.folder is None:
        raise FileNotFoundError(f"neither images nor data is given; expected {advice}")


class SourceImages(ImageStream):
    """A data set as images to be measured; unlike in training, one that cannot be read is an error.

    Args:
        source: images uint8 [3, S, S] with labels.
        name: for messages and results.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.data, self.source = source, name
        self.count, self.size = len(source), tuple(source.item_shape[1:])
        self.labels = np.asarray(source.labels, dtype=np.int64)

    def images(self, positions: range) -> Iterator[torch.Tensor]:
        """See `ImageStream.images`."""
        for batch in eval_loader(Part(self.data, np.asarray(positions)), batch_size=32):
            if batch["skipped"]:
                raise ValueError(f"{self.source}: {batch['skipped'][0]} cannot be read")
            yield from batch["images"]

    def digest(self) -> str:
        """SHA-256 of the labels and class names; pixels are in the fingerprint of a result."""
        return digest_lines([self.source, *self.data.class_names, *map(str, self.labels)])


def open_validation(
    options: ReproduceOptions, config: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[ImageStream, Callable[[torch.Tensor], list[str]]]:
    """The validation images, and a function that gives captions for positions int64 [B]."""
    size = tokenizer.image_size
    if options.images is None:
        fixed = {"image_size": size, "resize": crop_of(options.model)}
        source = still_source(options.data, split="validation", config=config, **fixed)
        section = options.data or config["data"]["validation"]
        stream = SourceImages(source, " ".join(str(section[k]) for k in ("name", "path") if k in section))
        names = source.class_names
    else:
        path = options.images if "{" in options.images else str(find_file(options.images))
        stream = open_images(path, transform=partial(CROPS[crop_of(options.model)], size=size))
        source, names = None, imagenet_classes()
        known = 0 if stream.labels is None else int(stream.labels.max()) + 1
        if tokenizer.needs_text and known != len(names):
            raise ValueError(
                f"{options.model} reads the class of every image in a caption, but {path} has {known} classes instead"
                f" of {len(names)}; expected one folder per class, .cls members in tar shards, or a section data"
            )
    stream.limit(options.num_samples)

    def captions(positions: torch.Tensor) -> list[str]:
        numbers = positions.tolist()
        if source is not None and source.has_captions:
            return source.captions(numbers)
        every = class_captions(names)
        return [every[label] for label in stream.labels[numbers]]

    return stream, captions


def measure_tokenizer(options: ReproduceOptions, release: Release, device: torch.device) -> dict[str, Any]:
    """Reconstruct and measure in one pass; what `result.json` needs."""
    config = open_model(release.name, "tokenizer").config
    tokenizer = load_tokenizer(release.name, device)
    encoder = load_text_encoder(options.text_encoder, device) if tokenizer.needs_text else None
    stream, captions = open_validation(options, config, tokenizer)
    metrics = ("rfid", "is", "psnr", "ssim")
    networks = load_extractors(options.evaluation(samples=stream.source), metrics, device)
    evaluator = Evaluator(
        extractors=networks, metrics=metrics, protocol="tokenizer", num_images=stream.count, device=device
    )
    usage = CodebookUsage(tokenizer.codebook_size) if tokenizer.is_discrete else None
    facts = {
        "samples": protocols.image_facts(stream),
        "crop": f"{crop_of(release.name)} {tokenizer.image_size}",
        "captions": captions(torch.tensor([0]))[0] if encoder is not None else None,
        "reference": image_reference(stream, "originals").facts(),
        "tokenizer": {
            "name": release.name,
            "weight_hash": weight_hash(tokenizer),
            "tokens_per_image": tokenizer.num_tokens,
            "bits_per_image": tokenizer.bits_per_image,
        },
    }
    notes = protocols.warnings_about(
        facts["samples"],
        metrics=metrics,
        protocol=evaluator.protocol,
        reference=facts["reference"],
        reconstructed=True,
    )
    for images, positions in batches(stream, options.batch_size, "reconstructing"):
        originals = to_float(images.to(device))
        with torch.inference_mode():
            tokens = tokenizer.encode(originals)
        text = None if encoder is None else encoder.encode(captions(positions))
        if usage is not None:
            usage.update(tokens)
        evaluator.update_pairs(decode(tokenizer, tokens, text), originals, positions)
    values = {**evaluator.result(), **({} if usage is None else usage.result(device))}
    return conclude(values, {**facts, **evaluator.facts()}, notes, release)


def measure_generator(options: ReproduceOptions, release: Release, device: torch.device) -> dict[str, Any]:
    """Draw what is missing and measure it; what `result.json` needs."""
    folder = str(Path(options.output).expanduser() / "samples")
    kept = {key: getattr(options, key) for key in ("num_samples", "seed", "batch_size", "overwrite")}
    draw_samples(SampleOptions(generator=release.name, output=folder, png=False, **kept), device)
    distributed.barrier()  # the main process writes the final file
    run = Run(options.evaluation(samples=folder, reference=options.reference, protocol="adm"), device)
    run.metrics = tuple("gfid" if metric == "fid" else metric for metric in run.metrics)
    evaluator = run.evaluator()
    facts = run.facts()
    notes = run.warnings(facts)
    values = run.measure(evaluator)
    return conclude(values, {**facts, **evaluator.facts()}, notes, release)


def conclude(
    values: Mapping[str, float], facts: Mapping[str, Any], notes: list[str], release: Release
) -> dict[str, Any]:
    """Numbers, those published, and what may have made the difference."""
    notes = notes + protocols.network_warnings(facts["extractors"])
    rows = compare(values, release.metrics, facts["images"])
    apart = [r for r in rows if r["metric"].split("_")[0] in ("gfid", "rfid") and r["difference"] is not None]
    differs = any(abs(row["difference"]) > TOLERANCE for row in apart)
    return {
        "comparison": rows,
        "may_explain": [*notes, *known_differences(release, facts)] if differs else [],
        "metrics": dict(values),
        "warnings": notes,
        "protocol": dict(facts),
    }


def compare(values: Mapping[str, float], published: Mapping[str, float], count: int) -> list[dict[str, Any]]:
    """Rows of metric (named with the number of images unless it is 50,000), measured, published, difference."""
    rows = []
    for metric in TABLE:
        name, known = protocols.result_name(metric, count), published.get(CATALOG.get(metric, metric))
        if name in values:
            difference = None if known is None else values[name] - known
            row = {"metric": name, "measured": values[name], "published": known}
            rows.append({**row, "difference": difference})
    return rows


def known_differences(release: Release, facts: Mapping[str, Any]) -> list[str]:
    """What is done otherwise here than the authors did, or cannot be known."""
    notes = [f"the weights of {release.name} were not compared with a published hash: none is known"]
    if release.kind == "generator":
        if Path(facts["reference"]["source"]).name != REFERENCE:
            notes.append(f"the reference is not called {REFERENCE}, as that of the published FID is")
        balance = facts["samples"].get("labels", {})
        if balance.get("fewest_images") != balance.get("most_images"):
            notes.append("the classes have different numbers of samples")
        if release.repo in (TITOK, RAR) or release.layout == "magvit2_generator":
            notes.append("pixels are rounded to 8 bit; the authors' sampler cut them: half a level darker")
        notes.append("the random numbers are not the authors' (with TF32); each seed gives another FID")
        return notes
    if release.bits_per_image is None:
        notes.append("the mean of the latent distribution is decoded; the authors' code draws from it")
    if release.layout in ("magvit2", "magvit2_first_stage"):
        notes.append("the authors resized images bilinearly (IBQ: without antialiasing), not bicubically")
    if facts.get("captions"):
        notes.append(f"the authors' class names may be others than ours: {facts['captions']!r}")
    notes.append("decoders of JPEG differ by a level or two, and the authors' version is not known")
    return notes


def finished(options: ReproduceOptions) -> dict[str, Any] | None:
    """The result that the folder holds, on all processes; None if there is none or it is to be replaced.

    Raises:
        ValueError: it was made with other settings.
    """
    try:
        stored = json.loads(options.result_file.read_text())
    except (OSError, ValueError):
        stored = None
    # All go by what the main process sees.
    stored = distributed.gather_objects(stored)[0]
    if stored is None or options.overwrite:
        return None
    other = first_difference(stored.get("settings", {}), options.settings, "settings")
    if other:
        raise ValueError(
            f"{options.result_file} is of other settings ({other}); choose another output, or overwrite=true"
        )
    return stored


def report(result: Mapping[str, Any]) -> None:
    """Print the table and what belongs to it."""

    def cell(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}.{4 if abs(value) < 10 else 2}f}"

    say(f"\n{result['settings']['model']}: {result['protocol']['images']} images")
    say(f"{'metric':<16}{'measured':>12}{'published':>12}{'difference':>12}")
    for row in result["comparison"]:
        numbers = (cell(row["measured"]), cell(row["published"]), cell(row["difference"], "+"))
        say(f"{row['metric']:<16}" + "".join(f"{number:>12}" for number in numbers))
    if result["may_explain"]:
        say(f"\nThe FID differs by more than {TOLERANCE}. What may explain it:")
    for reason in result["may_explain"]:
        say(f"- {reason}")
    say()


def main(options: ReproduceOptions, tree: dict) -> None:
    """Look for everything, draw or reconstruct, measure, compare."""
    release, clock = find_release(options.model), Clock()
    check_kind(options, release)
    with processes() as device:
        result = finished(options)
        if result is not None:
            report(result)
            say(f"{options.result_file} was finished before; overwrite=true measures again")
            return
        require_all(pieces(options, release), release.name)
        measure = measure_generator if release.kind == "generator" else measure_tokenizer
        result = {"settings": options.settings, **measure(options, release, device)}
        if distributed.is_main():
            options.result_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(options.result_file, json.dumps(result, indent=1, default=str) + "\n")
        for note in result["warnings"]:
            warn(note)
        report(result)
        say(f"{duration(clock.lap())}; see {options.result_file}")


if __name__ == "__main__":
    run_script(main, ReproduceOptions, __doc__)
