"""Measurements of a released model as its authors made them, beside those they published."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import distributed
from common.config import first_difference
from common.console import Clock, duration, say, warn
from common.launch import processes
from common.requirements import require_all, require_files
from data.transforms import CROPS
from evaluator.float_rfid import load_float_inception
from evaluator.image_files import open_images
from evaluator.image_selection import spread
from evaluator.image_stream import ImageStream
from evaluator.inception_weights import find_inception_weights
from evaluator.networks import load_networks
from evaluator.outcome import failure
from evaluator.provenance import image_facts, pixel_warnings, warnings_about
from evaluator.reference import image_reference
from jobs.evaluate import Run
from jobs.measuring import ReconstructionMeasurement, SourceImages, found, tokenizer_facts
from jobs.options.reproduce import REFERENCE, ReproduceOptions
from jobs.options.sample_images import SampleOptions
from jobs.published import conclude, family_measurement, family_of, report
from jobs.sampling import draw_samples
from modeling.layers.half import PRECISIONS
from modeling.pipeline import load_tokenizer
from modeling.pretrained.catalog import find_release
from modeling.pretrained.model_names import open_model
from modeling.pretrained.release import Release, imagenet_classes
from modeling.pretrained.text import class_captions, load_text_encoder
from modeling.tokenizers.base import Tokenizer
from storage.files import check_output_file, write_json
from storage.json_files import try_json
from storage.locks import reserved_folder
from storage.remote_files import is_remote

ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256"
REFERENCE_URL = f"{ADM}/{REFERENCE}"


def check_kind(options: ReproduceOptions, release: Release) -> None:
    """Raise ValueError for options of the other kind of model, or of other tokenizers."""
    takes, wrong = "validation images, its own reference", ("reference",)
    if release.kind == "generator":
        takes, wrong = "a reference", ("images", "data", "text_encoder", "image_size", "lpips_weights")
    for key in wrong:
        if getattr(options, key) is not None:
            raise ValueError(f"{key} is given, but {release.name} is a {release.kind}, which takes {takes}")
    unknown = options.feature_precision not in PRECISIONS  # float64
    if release.kind == "tokenizer" and family_of(release.name).float_rfid and unknown:
        known = f"rFID of {release.name} is computed in {', '.join(PRECISIONS)}"
        raise ValueError(f"feature_precision={options.feature_precision}: {known}")


def pieces(options: ReproduceOptions, release: Release) -> dict[str, Callable[[], Any]]:
    """Every file that is needed, each with a function that finds or downloads it, or raises."""
    needed: dict[
        str, Callable[[], Any]
    ] = {}  # first what the user supplies: it may be missing, downloads take long
    if release.kind == "generator":
        needed["reference"] = partial(find_reference, options, release)
    else:
        needed["validation images"] = partial(find_validation, options, release)
    for path in options.lpips_weights or []:
        needed[f"lpips weights {path}"] = partial(require_files, path, "VGG-16, or heads of LPIPS")
    needed["inception weights"] = partial(find_inception_weights, options.inception_weights)
    if reads_text(release):
        needed["text encoder"] = partial(load_text_encoder, options.text_encoder)
    needed[f"weights of {release.name}"] = partial(open_model, release.name, release.kind)
    if release.tokenizer is not None:
        needed[f"weights of {release.tokenizer}"] = partial(open_model, release.tokenizer, "tokenizer")
    return needed


def reads_text(release: Release) -> bool:
    """Whether the model is a tokenizer whose decoder reads captions (without its weights)."""
    if release.kind == "generator":
        return False
    section = release.section or open_model(release.name, "tokenizer").section("tokenizer")
    return section["name"] == "tatitok"


def find_reference(options: ReproduceOptions, release: Release) -> None:
    """Raise FileNotFoundError unless the reference is there."""
    advice = REFERENCE_URL if release.folder is None else "statistics or images"
    if options.reference is None:
        raise FileNotFoundError(f"reference is not set; get {advice} and set reference=FILE")
    require_files(options.reference, advice)


def find_validation(options: ReproduceOptions, release: Release) -> None:
    """Raise OSError or ValueError unless the validation images are set and exist."""
    advice = (
        "the 50,000 validation images of ImageNet (ILSVRC2012_img_val.tar, image-net.org) as a folder or tar"
        " shards: images=PATH or images='val-{000000..000049}.tar', or a section data.name=... data.path=..."
    )
    if options.images is not None:
        require_files(options.images, advice)
    elif options.data is not None:
        paths = options.data.get("path") or []
        for path in [paths] if isinstance(paths, str) else paths:
            if not is_remote(path):
                require_files(path, advice)
    elif release.folder is None:
        raise FileNotFoundError(f"neither images nor data is given; expected {advice}")


def open_validation(
    options: ReproduceOptions, config: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[ImageStream, Callable[[torch.Tensor], list[str]]]:
    """The validation images, and a function that gives captions for positions int64 [B]."""
    size, crop = options.image_size or tokenizer.image_size, family_of(options.model).crop
    source, names = None, imagenet_classes()
    if options.images is None:
        stream = SourceImages(options.data, split="validation", config=config, image_size=size, resize=crop)
        source, names = stream.data, stream.data.class_names
    else:
        path = found(options.images)
        stream = open_images(path, transform=partial(CROPS[crop], size=size))
        known = 0 if stream.labels is None else int(stream.labels.max()) + 1
        if tokenizer.needs_text and known != len(names):
            advice = "expected one folder per class, .cls members in tar shards, or a section data"
            problem = f"{path} has {known} classes instead of {len(names)}"
            raise ValueError(
                f"{options.model} reads the class of every image in a caption, but {problem}; {advice}"
            )
    stream = spread(stream, options.num_samples)

    def captions(positions: torch.Tensor) -> list[str]:
        if source is not None and source.has_captions:
            return source.captions(stream.places(positions.tolist()))
        every = class_captions(names)
        return [every[label] for label in stream.labels[positions.numpy()]]

    return stream, captions


def check_size(options: ReproduceOptions, tokenizer: Tokenizer) -> int:
    """Side of the images; raises ValueError if the tokenizer does not take it."""
    size = options.image_size or tokenizer.image_size
    factor = tokenizer.downscale
    if size != tokenizer.image_size and (factor is None or size % factor):
        takes = f"only {tokenizer.image_size}" if factor is None else f"multiples of {factor}"
        raise ValueError(f"image_size={size}: {options.model} takes {takes} pixels")
    return size


def open_measurement(
    options: ReproduceOptions, tokenizer: Tokenizer, stream: ImageStream, device: torch.device
) -> ReconstructionMeasurement:
    """The measurement of the tokenizer's family, with its networks."""
    family, network = family_of(options.model), None
    metrics = [*family.on_stored, *(["lpips"] if options.lpips_weights is not None else [])]
    weights = {"inception": options.inception_weights, "lpips": options.lpips_weights}
    networks = load_networks(metrics, weights, device=device, precision=options.feature_precision)
    if family.float_rfid:
        weights, precision = options.inception_weights, options.feature_precision
        network = load_float_inception(weights, device=device, precision=precision)
    return family_measurement(
        family,
        networks=networks,
        float_network=network,
        codebook_size=tokenizer.codebook_size,
        num_images=stream.count,
        device=device,
    )


def measure_tokenizer(options: ReproduceOptions, release: Release, device: torch.device) -> dict[str, Any]:
    """Reconstruct and measure in one pass; returns the content of `result.json`."""
    config, family = open_model(release.name, "tokenizer").config, family_of(release.name)
    tokenizer = load_tokenizer(release.name, device, precision=options.precision)
    size, own = check_size(options, tokenizer), tokenizer.image_size
    encoder = load_text_encoder(options.text_encoder, device) if tokenizer.needs_text else None
    stream, captions = open_validation(options, config, tokenizer)
    measurement = open_measurement(options, tokenizer, stream, device)
    facts = {
        "samples": image_facts(stream),
        "family": asdict(family),
        "crop": f"{family.crop} {size}",
        "captions": captions(torch.tensor([0]))[0] if encoder is not None else None,
        "reference": image_reference(stream, "originals").facts(),
        "tokenizer": tokenizer_facts(release.name, tokenizer, size, options.precision),
    }
    notes = warnings_about(
        facts["samples"],
        metrics=(*family.metrics, *(["lpips"] if options.lpips_weights else [])),
        protocol=measurement.evaluator.settings,
        reference=facts["reference"],
        reconstructed=True,
    )
    text = None if encoder is None else lambda positions: encoder.encode(captions(positions))
    measurement.reconstruct(tokenizer, stream, options.batch_size, text)
    outcome, other_size = measurement.outcome(), None if size == own else size
    facts["samples"] |= stream.pixel_facts()
    notes += pixel_warnings(facts["samples"])
    return conclude(outcome, {**facts, **measurement.facts()}, notes, release, other_size)


def measure_generator(options: ReproduceOptions, release: Release, device: torch.device) -> dict[str, Any]:
    """Draw the missing samples and measure all; returns the content of `result.json`."""
    folder = str(Path(options.output) / "samples")
    kept = {
        key: getattr(options, key) for key in ("num_samples", "seed", "batch_size", "precision", "overwrite")
    }
    draw_samples(SampleOptions(generator=release.name, output=folder, png=False, **kept), device)
    distributed.barrier()  # the main process has written the NPZ
    run = Run(options.evaluation(samples=folder, reference=options.reference, protocol="adm"), device)
    run.metrics = tuple("gfid" if metric == "fid" else metric for metric in run.metrics)
    evaluator = run.evaluator()
    facts = run.facts()
    notes = run.warnings(facts)
    outcome = run.measure(evaluator)
    notes += run.describe_pixels(facts)
    return conclude(outcome, {**facts, **evaluator.facts()}, notes, release)


def finished(options: ReproduceOptions) -> dict[str, Any] | None:
    """The complete result in the folder, None with `overwrite`; raises ValueError if it is of other settings."""
    stored = distributed.on_main(lambda: try_json(options.result_file))
    if not stored or options.overwrite or stored.get("errors"):
        return None
    other = first_difference(stored.get("settings", {}), options.settings, "settings")
    if other:
        advice = "choose another output, or overwrite=true"
        raise ValueError(f"{options.result_file} is of other settings ({other}); {advice}")
    return stored


@contextmanager
def reserved_output(options: ReproduceOptions) -> Iterator[None]:
    """See that the result can be written, before anything is drawn or measured."""
    with reserved_folder(options.output):
        distributed.on_main(lambda: check_output_file(options.result_file, begins=b"{"))
        yield


def reproduce(options: ReproduceOptions) -> None:
    """Check that all files are there, draw or reconstruct, measure, and compare."""
    release, clock = find_release(options.model), Clock()
    check_kind(options, release)
    with processes() as device, reserved_output(options):
        result = finished(options)
        if result is not None:
            report(result)
            say(f"{options.result_file} was finished before; overwrite=true measures again")
            return
        require_all(pieces(options, release), release.name)
        measure = measure_generator if release.kind == "generator" else measure_tokenizer
        result = {"settings": options.settings, **measure(options, release, device)}
        for note in result["warnings"]:
            warn(note)
        report(result)  # first: if the file cannot be written after all, the numbers are there
        distributed.on_main(lambda: write_json(options.result_file, result, default=str))
        say(f"{duration(clock.lap())}; see {options.result_file}")
        if errors := result.get("errors"):
            raise ValueError(f"{failure(errors)}; {options.result_file} holds the other metrics")
