"""K-means over the features of a frozen network: the codes of a Cluster tokenizer."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common import distributed
from common.build import check_options
from common.config import first_difference, option, read_yaml
from common.console import Clock, banner, duration, progress, say, warn
from common.images import to_float
from common.launch import processes
from data.loaders import eval_loader
from data.source import Source
from data.still import Part, still_source
from modeling.pretrained.teachers import Teacher, load_teacher
from modeling.quantizers.kmeans import accumulate, assign, move_centroids, prepare
from modeling.quantizers.vq import VectorQuantizer
from modeling.tokenizers.cluster import Cluster
from storage.files import write_text, write_yaml
from storage.weights import weight_hash, write_weights

PROGRESS, RESULT = "centroids.safetensors", "model.safetensors"
START_ATTEMPTS = 5


@dataclass(kw_only=True)
class FitOptions:
    """Whose features of which images become how many codes."""

    teacher: dict = option(help="section: name (of timm), weights, grid, project, input_size")
    data: dict = option(help="section like data.train of a run; random augmentation is off")
    output: str = option(help="run folder to write")
    image_size: int = option(256, "side of the images that the tokenizer takes")
    codebook_size: int = option(8192, "number of codes")
    metric: Literal["cosine", "euclidean"] = option("cosine", "cosine: unit features and codes")
    iterations: int = option(20, "passes over the images; it stops early when nothing changes")
    images: int = option(0, "that many images, evenly chosen; 0 = all")
    seed: int = option(42, "fixes the features that k-means starts from")
    batch_size: int = option(64, "images per process and batch")
    num_workers: int = option(4, "loading processes per process")
    max_skipped: float = option(0.01, "share of unreadable images at which the job stops")

    def __post_init__(self) -> None:
        for key, least in (("codebook_size", 1), ("iterations", 1), ("batch_size", 1), ("images", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {least}")


def vectors_of(
    teacher: Teacher, source: Source, options: FitOptions, device: torch.device, title: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's share of the images: positions int64 [B], and comparable features [B, grid * grid, C].

    Raises:
        ValueError: too many images cannot be read.
    """
    loader = eval_loader(
        source,
        batch_size=options.batch_size,
        num_processes=distributed.world_size(),
        process_index=distributed.rank(),
        num_workers=options.num_workers,
        pin_memory=device.type == "cuda",
    )
    skipped: list[str] = []
    share = -(-len(source) // distributed.world_size())
    bar = progress(None, title, total=share, unit="image")
    for batch in loader:
        skipped += batch["skipped"]
        if len(skipped) > options.max_skipped * share:
            raise ValueError(
                f"{len(skipped)} of {share} images cannot be read, more than max_skipped={options.max_skipped:g}"
                f" allows: {', '.join(skipped[:3])}"
            )
        if len(batch["positions"]):
            features = teacher(to_float(batch["images"].to(device)))
            yield batch["positions"], prepare(features.flatten(2).transpose(1, 2), options.metric)
        bar.update(len(batch["positions"]) + len(batch["skipped"]))
    bar.close()


def start_centroids(
    teacher: Teacher, source: Source, options: FitOptions, device: torch.device
) -> torch.Tensor:
    """Features [K, C] at places drawn by the seed alone, the same for any number of processes.

    Raises:
        ValueError: there are fewer features than codes, or too many of them cannot be read.
    """
    places = teacher.grid**2
    total, count = len(source) * places, options.codebook_size
    if total < count:
        raise ValueError(
            f"codebook_size={count} is more than the {total} features of {len(source)} images ({places} each)"
        )
    draws = np.random.default_rng(options.seed)
    centroids, missing = torch.zeros(count, teacher.width, device=device), np.arange(count)
    for _ in range(START_ATTEMPTS):
        images, cells = np.divmod(draws.choice(total, len(missing), replace=False), places)
        unique, image_of = np.unique(images, return_inverse=True)
        found = torch.zeros(count, device=device)
        for positions, vectors in vectors_of(teacher, Part(source, unique), options, device, "start"):
            slot = np.full(len(unique), -1)
            slot[positions.numpy()] = np.arange(len(positions))
            here = np.flatnonzero(slot[image_of] >= 0)
            rows = torch.from_numpy(missing[here]).to(device)
            centroids[rows] = vectors[slot[image_of[here]], cells[here]]
            found[rows] = 1.0
        missing = missing[distributed.all_reduce_sum(found).cpu().numpy()[missing] == 0]
        if not len(missing):  # every place was read by one process; the others hold zeros
            return distributed.all_reduce_sum(centroids)
    raise ValueError(f"{len(missing)} of {count} features to start from cannot be read")


def lloyd_pass(
    teacher: Teacher,
    source: Source,
    centroids: torch.Tensor,
    options: FitOptions,
    device: torch.device,
    title: str,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """One iteration over all images of all processes.

    Returns:
        New centroids [K, C], how many features each old one got [K], and their mean squared distance to it.
    """
    # Millions of features in one sum: float64, where the device has it.
    exact = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(centroids.shape, dtype=exact, device=device)
    counts = torch.zeros(len(centroids), dtype=exact, device=device)
    distance = torch.zeros((), dtype=exact, device=device)
    for _, vectors in vectors_of(teacher, source, options, device, title):
        vectors = vectors.flatten(0, 1)
        tokens, distances = assign(vectors, centroids)
        accumulate(vectors, tokens, sums, counts)
        distance += distances.to(exact).sum()
    sums, counts, distance = (distributed.all_reduce_sum(x) for x in (sums, counts, distance))
    if not counts.sum():
        raise ValueError("none of the images can be read")
    moved = move_centroids(centroids, sums, counts, options.metric)
    return moved, counts, float(distance / counts.sum())


def fit(
    teacher: Teacher,
    source: Source,
    options: FitOptions,
    device: torch.device,
    settings: Mapping[str, Any],
    output: Path,
) -> tuple[torch.Tensor, dict[str, float]]:
    """K-means from the last whole iteration to the end; called on every process.

    Args:
        settings: what another job in the same folder must agree with.

    Returns:
        Centroids [K, C] on the CPU, and what the last pass measured.
    """
    done, centroids, measured = read_progress(output, settings)
    distributed.barrier()  # everybody has seen the same state before anybody writes another
    centroids = (
        start_centroids(teacher, source, options, device) if centroids is None else centroids.to(device)
    )
    for iteration in range(done + 1, options.iterations + 1):
        if measured.get("converged"):
            break
        title = f"iteration {iteration}/{options.iterations}"
        moved, counts, distance = lloyd_pass(teacher, source, centroids, options, device, title)
        shares = counts[counts > 0].cpu().double() / counts.cpu().double().sum()
        measured = {
            "iterations": iteration,
            "mean_squared_distance": distance,
            "codebook_usage": float((counts > 0).double().mean()),
            "codebook_perplexity": float(2 ** -(shares * shares.log2()).sum()),
            "converged": bool(torch.equal(moved, centroids)),
        }
        centroids = moved
        usage, perplexity = measured["codebook_usage"], measured["codebook_perplexity"]
        say(
            f"{title} | mean squared distance {distance:.5f} | codebook usage {usage:.1%}"
            f" | perplexity {perplexity:.1f}"
        )
        if distributed.is_main():
            write_progress(output, settings, centroids, measured)
    return centroids.cpu(), measured


def read_progress(
    output: Path, settings: Mapping[str, Any]
) -> tuple[int, torch.Tensor | None, dict[str, Any]]:
    """Iterations done, centroids and measurements of a job that was interrupted; 0, None, {} if there was none.

    Raises:
        ValueError: the folder holds the state of another job, or a damaged one.
    """
    path = output / PROGRESS
    if not path.exists():
        return 0, None, {}
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            centroids = file.get_tensor("centroids")
    except Exception as error:  # safetensors raises its own kind for every damage
        raise ValueError(f"{path} is damaged ({error}); remove it to start again") from error
    refuse_other(output, state["settings"], settings)
    return state["measured"]["iterations"], centroids, state["measured"]


def write_progress(
    output: Path, settings: Mapping[str, Any], centroids: torch.Tensor, measured: Mapping[str, Any]
) -> None:
    """Write the state after an iteration, whole or not at all."""
    temporary = output / f".{PROGRESS}.{os.getpid()}.part"
    state = json.dumps({"settings": settings, "measured": measured})
    try:
        save_file({"centroids": centroids.cpu().contiguous()}, temporary, metadata={"state": state})
        os.replace(temporary, output / PROGRESS)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_other(output: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a folder belongs to a job with other settings."""
    difference = first_difference(found, json.loads(json.dumps(settings)), "fit")
    if difference:
        raise ValueError(f"{output} holds another codebook ({difference}); name another output folder")


def write_run(
    output: Path,
    teacher: Teacher,
    centroids: torch.Tensor,
    options: FitOptions,
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> Cluster:
    """The run folder of the finished tokenizer: config.yaml, model.safetensors, metrics.json."""
    unit = options.metric == "cosine"
    sizes = {"codebook_size": len(centroids), "code_dim": teacher.width, "use_l2_norm": unit}
    quantizer = VectorQuantizer(**sizes)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(centroids)
    tokenizer = Cluster(teacher=teacher.cpu(), quantizer=quantizer, image_size=options.image_size).eval()
    part = {key: value for key, value in options.teacher.items() if key != "weights"}  # they are in the file
    section = {
        "name": "cluster",
        "image_size": options.image_size,
        "teacher": part,
        "quantizer": {"name": "vq", **sizes},
    }
    write_yaml(
        output / "config.yaml",
        {"tokenizer": section, "data": {"train": dict(options.data)}, "fit": dict(settings)},
    )
    write_text(output / "metrics.json", json.dumps(dict(measured), indent=2) + "\n")
    write_weights(output / RESULT, tokenizer)
    (output / PROGRESS).unlink(missing_ok=True)
    return tokenizer


def fit_codebook(options: FitOptions) -> None:
    """Fit what is not fitted yet, and write the tokenizer."""
    with processes() as device:
        output, clock = Path(options.output), Clock()
        teacher = load_teacher(
            **check_options("teacher", load_teacher, options.teacher, runtime=("device",)), device=device
        )
        source = still_source(options.data, split="train", config={}, image_size=options.image_size)
        if 0 < options.images < len(source):
            source = Part(source, np.arange(options.images) * len(source) // options.images)
        # Everything that the result depends on; paths may change, so weights and images count instead.
        settings = {
            "teacher": {key: value for key, value in options.teacher.items() if key != "weights"},
            "teacher_weights": weight_hash(teacher),
            "images": len(source),
            **{key: getattr(options, key) for key in ("image_size", "codebook_size", "metric", "seed")},
        }
        if (output / RESULT).exists():
            refuse_other(output, read_yaml(output / "config.yaml").get("fit") or {}, settings)
            say(f"{output} already holds this codebook; nothing to do")
            return
        banner("Fitting a codebook", {**vars(options), "devices": distributed.world_size()})
        if distributed.is_main():
            output.mkdir(parents=True, exist_ok=True)
        distributed.barrier()
        centroids, measured = fit(teacher, source, options, device, settings, output)
        empty = 1 - measured["codebook_usage"]
        if empty > 0:
            warn(f"{empty:.1%} of the codes stand for no feature; more images or fewer codes would use them")
        if distributed.is_main():
            tokenizer = write_run(output, teacher, centroids, options, settings, measured)
            say(
                f"{tokenizer.codebook_size} codes of {teacher.width} channels, {tokenizer.num_tokens} tokens per image,"
                f" in {duration(clock.lap())}: {output}"
            )
