"""What has to be known about a number before it can be compared: settings of the metrics, names, provenance, warnings.

Three protocols are quoted in papers. `adm`: the evaluator of arXiv:2105.05233, for generators. `torch-fidelity`:
the PyTorch tool of that name. `tokenizer`: the training-time evaluator of one-dimensional tokenizers
(arXiv:2406.07550), for reconstructions. FID and sFID are the same in all of them; the others differ.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.build import ConfigError, nearest
from evaluator.image_files import member_shape
from evaluator.image_stream import ImageStream

HEADLINE_COUNT = 50_000
SET_METRICS = ("fid", "rfid", "gfid", "sfid", "is", "kid", "precision_recall", "fd_dinov2")
PAIR_METRICS = ("psnr", "ssim", "lpips")
METRICS = (*SET_METRICS, *PAIR_METRICS)
# Biased by the number of images: without the right number they carry it in their name.
COUNTED = ("fid", "rfid", "gfid", "sfid", "fd_dinov2", "is")
# What is compared with a reference; the others look at the samples alone.
COMPARED = tuple(m for m in SET_METRICS if m != "is")


@dataclass(frozen=True)
class Protocol:
    """Settings of the metrics that the tools disagree about.

    Attributes:
        name: adm, torch-fidelity or tokenizer.
        is_splits: number of equal splits of the Inception Score; None = consecutive blocks.
        is_order: "stored", or "shuffled" by numpy's RandomState(2020).
        is_block: length of the blocks, the last may be shorter.
        neighbours: k of precision and recall.
        half_distances: squared distances in float16 as ADM computes them, instead of float32.
        kid_subsets, kid_subset_size: of the kernel distance.
    """

    name: str
    is_splits: int | None
    is_order: str
    is_block: int | None
    neighbours: int = 3
    half_distances: bool = False
    kid_subsets: int = 100
    kid_subset_size: int = 1000

    def facts(self) -> dict[str, Any]:
        """As plain values, for results."""
        return asdict(self)


PROTOCOLS = {
    "adm": Protocol("adm", is_splits=None, is_order="stored", is_block=5000, half_distances=True),
    "torch-fidelity": Protocol("torch-fidelity", is_splits=10, is_order="shuffled", is_block=None),
    "tokenizer": Protocol("tokenizer", is_splits=1, is_order="stored", is_block=None),
}


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse names that are not metrics.

    Raises:
        ConfigError: a name is unknown or stands there twice, or there is none.
    """
    if not metrics:
        raise ConfigError(f"metrics=[] names no metric; expected some of {', '.join(METRICS)}")
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(
                f"metrics: {name!r} is unknown{nearest(name, METRICS)}; expected some of {', '.join(METRICS)}"
            )
    if len(set(metrics)) < len(metrics):
        raise ConfigError(f"metrics={list(metrics)} names one twice")


def result_name(metric: str, count: int) -> str:
    """The metric's name; with the number of images unless they are 50,000: fid_5k, is_1234.

    A Frechet distance is biased upward by about 1 / N, and an Inception Score grows with N, so that such a number
    must not be mistaken for the one that papers report.
    """
    if count == HEADLINE_COUNT or metric not in COUNTED:
        return metric
    return f"{metric}_{count // 1000}k" if count % 1000 == 0 else f"{metric}_{count}"


def check_names(metrics: Sequence[str], image_set: str, same_count: bool = True) -> None:
    """Refuse to call a distance something that it is not.

    Args:
        metrics: what is to be computed.
        image_set: what the reference shows, see `evaluator.reference.Reference`.
        same_count: whether a reference of undescribed images has as many as there are samples.

    Raises:
        ConfigError: rFID against something else than the original or validation images, or gFID against originals.
    """
    images = ("originals", "validation") if not same_count else ("originals", "validation", "images")
    if "rfid" in metrics and image_set not in images:
        what = "training images" if image_set == "training" else "something that it does not name"
        if image_set == "images":
            what = "another number of images"
        raise ConfigError(
            f"metrics: rfid compares reconstructions with the validation images they were made of, but the reference"
            f" shows {what}; ask for fid, or give the validation images as reference"
        )
    if "gfid" in metrics and image_set == "originals":
        raise ConfigError(
            "metrics: gfid compares generated images with training images, but the reference are the originals of"
            " the samples; ask for rfid"
        )


def sampler_facts(path: str | Path) -> dict[str, Any]:
    """How samples were made, as `sample_imagenet.py` or `scripts/reconstruct.py` wrote it beside them.

    Returns:
        The content of `samples.json` or the means of `reconstructions.json`, long lists replaced by their lengths,
        with `tokens_per_image` and `bits_per_image` where they can be told; empty if there is no such file.
    """
    place = Path(path).expanduser()
    folder = place if place.is_dir() else place.parent
    for name in ("samples.json", "reconstructions.json"):
        try:
            content = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            continue
        if not isinstance(content, Mapping):
            continue
        facts = {"file": name, **{k: _short(v) for k, v in content.items()}}
        tokens = content.get("num_tokens") or _stored_tokens(folder, content)
        if tokens:
            facts["tokens_per_image"] = int(tokens)
            size = content.get("codebook_size")
            if size and "bits_per_image" not in facts:
                facts["bits_per_image"] = int(tokens) * math.log2(size)
        return facts
    return {}


def _short(value: Any) -> Any:
    return f"{len(value)} values" if isinstance(value, list) and len(value) > 20 else value


def _stored_tokens(folder: Path, content: Mapping) -> int | None:
    images = content.get("images")
    if isinstance(images, list) and images and "tokens" in images[0]:
        return len(images[0]["tokens"])
    shape = member_shape(folder / "samples.npz", "tokens")
    return shape[1] if shape and len(shape) == 2 else None


def image_facts(images: ImageStream) -> dict[str, Any]:
    """Where images come from, their number, size and balance of labels."""
    facts: dict[str, Any] = {
        "source": images.source,
        "digest": images.digest(),
        "count": images.count,
        "height": images.size[0],
        "width": images.size[1],
        "lossy_files": images.lossy,
    }
    if images.labels is not None:
        counts = np.unique(images.labels, return_counts=True)[1]
        facts["labels"] = {
            "classes": len(counts),
            "fewest_images": int(counts.min()),
            "most_images": int(counts.max()),
            "in_class_order": in_class_order(images.labels),
        }
    return facts


def in_class_order(labels: np.ndarray) -> bool:
    """Whether int64 [N] lists one class after the other (and there are several)."""
    steps = np.diff(labels)
    return bool(len(labels) > 1 and (steps >= 0).all() and (steps > 0).any())


def warnings_about(
    samples: Mapping[str, Any],
    *,
    metrics: Sequence[str],
    protocol: Protocol,
    has_statistics: bool = False,
    reference: Mapping[str, Any] | None = None,
    reconstructed: bool = False,
) -> list[str]:
    """What a reader of the numbers must know.

    Args:
        samples: `image_facts` of the samples.
        metrics: those computed.
        protocol: settings used.
        has_statistics: the samples' file also holds statistics, as reference files do.
        reference: facts of the reference (`Reference.facts`), None without one.
        reconstructed: the samples are originals whose reconstructions are measured; they may be JPEG files.
    """
    notes, count = [], samples["count"]
    counted = [m for m in metrics if m in COUNTED]
    if counted and count != HEADLINE_COUNT:
        notes.append(
            f"{count} images instead of {HEADLINE_COUNT}: {', '.join(counted)} cannot be compared with published"
            " numbers, and their names say so"
        )
    if samples.get("lossy_files") and not reconstructed:
        notes.append(
            f"{samples['lossy_files']} samples are JPEG or WebP files; their losses count as differences, use PNG"
        )
    if has_statistics:
        notes.append(
            f"{samples['source']} is a reference file (it holds mu): only the images stored in it are measured,"
            " while the ADM evaluator would take its statistics"
        )
    elif not reconstructed and "VIRTUAL" in Path(str(samples["source"])).name:
        notes.append(f"{samples['source']} is named like a reference file and holds real images")
    sorted_labels = samples.get("labels", {}).get("in_class_order")
    if "is" in metrics and sorted_labels and protocol.is_order == "stored" and protocol.is_splits != 1:
        notes.append(
            "samples are stored in class order, which makes the Inception Score of this protocol useless"
        )
    if reference is not None:
        notes += _reference_warnings(samples, metrics, reference)
    return notes


def _reference_warnings(
    samples: Mapping[str, Any], metrics: Sequence[str], reference: Mapping[str, Any]
) -> list[str]:
    notes = []
    if not reference.get("verified"):
        notes.append(
            f"reference {reference['source']}: unverified recipe, it does not say by which network, resize and crop"
            " its statistics were made"
        )
    if reference.get("lossy_files") and reference.get("image_set") != "originals":
        notes.append(f"{reference['lossy_files']} reference images are JPEG or WebP files")
    size = (reference.get("height"), reference.get("width"))
    if None not in size and size != (samples["height"], samples["width"]):
        notes.append(
            f"samples have {samples['height']} x {samples['width']} pixels, the reference {size[0]} x {size[1]}:"
            " the distance is not a published one"
        )
    stored = reference.get("stored_images")
    if "precision_recall" in metrics and stored is not None and stored != 10_000:
        notes.append(f"precision and recall use {stored} reference images; published ones use 10000")
    return notes


def network_warnings(extractors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know about the networks.

    Args:
        extractors: `evaluator.evaluator.extractor_facts`.
    """
    notes = []
    for name, facts in extractors.items():
        if facts.get("official") is False:
            notes.append(
                f"the weights of {name} are not the published file: no number compares with one from elsewhere"
            )
        if facts["approximate"]:
            notes.append(f"{name} ran in reduced precision: good for curves, not for a number to be reported")
    return notes
