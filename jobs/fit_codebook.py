"""K-means over the features of a frozen network gives a Cluster tokenizer (arXiv:2411.04406), as a run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from common import distributed
from common.build import check_options
from common.config import first_difference, read_yaml
from common.console import Clock, banner, duration, say, warn
from common.launch import processes
from data.still import evenly_chosen, loading_options, still_source
from jobs.options.fit_codebook import FitOptions
from modeling.pretrained.teachers import Teacher, load_teacher
from modeling.quantizers.vq import VectorQuantizer
from modeling.tokenizers.cluster import Cluster
from storage.files import write_json, write_yaml
from storage.json_files import parse_json
from storage.locks import reserved_folder
from storage.weights import weight_hash, write_weights
from training.feature_clustering import FeatureClustering

PROGRESS, RESULT = "centroids.safetensors", "model.safetensors"


def fit(
    clustering: FeatureClustering, iterations: int, settings: Mapping[str, Any], output: Path
) -> tuple[torch.Tensor, dict[str, Any]]:
    """K-means from the last whole iteration to the end; called on every process.

    A job in the same folder must have the same `settings`. Returns centroids [K, C] on the CPU and the measurements of
    the last pass.
    """
    centroids, measured = read_progress(output, settings)
    distributed.barrier()  # all processes read the same state before one of them writes another
    centroids = clustering.start() if centroids is None else centroids.to(clustering.device)
    for iteration in range(measured.get("iterations", 0) + 1, iterations + 1):
        if measured.get("converged"):
            break
        title = f"iteration {iteration}/{iterations}"
        centroids, found = clustering.one_pass(centroids, title)
        measured = {"iterations": iteration, **found}
        usage = (
            f"codebook usage {found['codebook_usage']:.1%} | perplexity {found['codebook_perplexity']:.1f}"
        )
        say(f"{title} | mean squared distance {found['mean_squared_distance']:.5f} | {usage}")
        if distributed.is_main():
            state = json.dumps({"settings": settings, "measured": measured})
            write_weights(output / PROGRESS, {"centroids": centroids}, {"state": state})
    return centroids.cpu(), measured


def read_progress(output: Path, settings: Mapping[str, Any]) -> tuple[torch.Tensor | None, dict[str, Any]]:
    """Centroids and measurements of the last iteration of an interrupted job; None and {} if there was none.

    Raises:
        ValueError: the state is damaged, or belongs to a job with other settings.
    """
    path = output / PROGRESS
    if not path.exists():
        return None, {}
    try:
        with safe_open(path, framework="pt") as file:
            state = parse_json(file.metadata()["state"])
            settings_then, measured = state["settings"], dict(state["measured"])
            centroids = file.get_tensor("centroids")
    except Exception as error:  # safetensors raises its own kind for every damage
        raise ValueError(f"{path} is damaged ({error}); remove it to start again") from error
    refuse_other(output, settings_then, settings)
    return centroids, measured


def refuse_other(output: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a folder belongs to a job with other settings."""
    difference = first_difference(found, json.loads(json.dumps(settings)), "fit")  # as JSON: tuples are lists
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
    """Write the run folder of the finished tokenizer: config.yaml, metrics.json, model.safetensors."""
    cosine = options.metric == "cosine"
    sizes = {"codebook_size": len(centroids), "code_dim": teacher.width, "use_l2_norm": cosine}
    quantizer = VectorQuantizer(**sizes)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(centroids)
    tokenizer = Cluster(teacher=teacher.cpu(), quantizer=quantizer, image_size=options.image_size).eval()
    section = {
        "name": "cluster",
        "image_size": options.image_size,
        "teacher": settings["teacher"],
        "quantizer": {"name": "vq", **sizes},
    }
    config = {"tokenizer": section, "data": {"train": dict(options.data)}, "fit": dict(settings)}
    write_yaml(output / "config.yaml", config)
    write_json(output / "metrics.json", dict(measured))
    write_weights(output / RESULT, tokenizer.state_dict())  # last: this file says that the job is finished
    (output / PROGRESS).unlink(missing_ok=True)
    return tokenizer


def fit_codebook(options: FitOptions) -> None:
    """Fit the codebook, from the last complete iteration of an interrupted job, and write the tokenizer."""
    with processes() as device, reserved_folder(options.output):
        output, clock = Path(options.output), Clock()
        section = check_options("teacher", load_teacher, options.teacher, runtime=("device",))
        teacher = load_teacher(**section, device=device)
        source = still_source(options.data, split="train", config={}, image_size=options.image_size)
        if 0 < options.images < len(source):
            source = evenly_chosen(source, options.images)
        # All that the result depends on. Paths may change: weights count by their hash, images by their number.
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
        clustering = FeatureClustering(
            teacher,
            source,
            device,
            loading=loading_options(options),
            **{key: getattr(options, key) for key in ("codebook_size", "metric", "seed")},
        )
        centroids, measured = fit(clustering, options.iterations, settings, output)
        empty = 1 - measured["codebook_usage"]
        if empty > 0:
            warn(f"{empty:.1%} of the codes are not used; use more images or fewer codes")
        if distributed.is_main():
            tokenizer = write_run(output, teacher, centroids, options, settings, measured)
            size = f"{tokenizer.codebook_size} codes of {teacher.width} channels"
            say(f"{size}, {tokenizer.num_tokens} tokens per image, in {duration(clock.lap())}: {output}")
