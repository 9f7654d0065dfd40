"""What stands beside a number, so that it can be compared: where images come from, and what a reader must know."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluator.image_files import member_shape
from evaluator.image_stream import ImageStream
from evaluator.metrics import METRICS
from evaluator.metrics.base import HEADLINE_COUNT
from evaluator.protocol import ProtocolSettings
from storage.json_files import try_json


def sampler_facts(path: str | Path) -> dict[str, Any]:
    """How samples were made, as `sample_imagenet.py` or `scripts/reconstruct.py` wrote it beside them.

    The content of `samples.json` or `reconstructions.json`, long lists replaced by their lengths, with
    `tokens_per_image` and `bits_per_image` where they can be told; empty without such a file.
    """
    place = Path(path)
    folder = place if place.is_dir() else place.parent
    for name in ("samples.json", "reconstructions.json"):
        content = try_json(folder / name)
        if not content:
            continue
        facts = {"file": name, **{k: _short(v) for k, v in content.items()}}
        tokens = _positive(content.get("num_tokens")) or _stored_tokens(folder, content)
        if tokens:
            facts["tokens_per_image"] = tokens
            size = _positive(content.get("codebook_size"))
            if size and "bits_per_image" not in facts:
                facts["bits_per_image"] = tokens * math.log2(size)
        return facts
    return {}


def _short(value: Any) -> Any:
    return f"{len(value)} values" if isinstance(value, list) and len(value) > 20 else value


def _positive(value: Any) -> int | None:
    """A positive whole number that floats can hold, None for all else."""
    return value if type(value) is int and 0 < value < 2**53 else None


def _stored_tokens(folder: Path, content: Mapping) -> int | None:
    images = content.get("images")
    if isinstance(images, list) and images and isinstance(images[0], Mapping):
        tokens = images[0].get("tokens")
        if isinstance(tokens, list):
            return len(tokens)
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
    if images.left_out:
        facts["left_out"] = images.left_out.to_tree()
    if images.selection is not None:
        facts["selection"] = dict(images.selection)
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
    protocol: ProtocolSettings,
    has_statistics: bool = False,
    reference: Mapping[str, Any] | None = None,
    reconstructed: bool = False,
    recipe: Mapping[str, str] | None = None,
) -> list[str]:
    """What a reader of the numbers must know.

    Args:
        samples: `image_facts` of the samples.
        has_statistics: the samples' file also holds statistics, as reference files do.
        reference: `Reference.facts`, None without one.
        reconstructed: the samples are originals whose reconstructions are measured; they may be JPEG files.
        recipe: how samples become pixels (crop, ...), compared with what the reference says of its own.
    """
    notes, count = [], samples["count"]
    counted = [m for m in metrics if METRICS[m].counted]
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
    for metric in metrics:
        notes += METRICS[metric].warnings(samples, reference, protocol)
    if reference is not None:
        notes += _reference_warnings(samples, reference)
        notes += recipe_differences(recipe or {}, reference)
        if not reconstructed and samples["digest"] == reference.get("sha256"):
            notes.append("samples and reference are the same files")
    return notes


def _reference_warnings(samples: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
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
    return notes


def pixel_warnings(images: Mapping[str, Any]) -> list[str]:
    """What a reader must know about alpha and orientation, given facts with `ImageStream.pixel_facts`."""
    notes = []
    if transparent := images.get("transparent_files"):
        way = {
            "white": "composited on white; tools that drop alpha give other numbers",
            "drop": "taken as opaque",
        }
        notes.append(
            f"{images['source']}: transparent pixels in {transparent} files, alpha={images['alpha']}:"
            f" {way[images['alpha']]}"
        )
    if turned := images.get("turned_files"):
        way = {"stored": "left as stored, as in published protocols", "upright": "turned upright"}
        notes.append(
            f"{images['source']}: an EXIF orientation in {turned} files, orientation={images['orientation']}:"
            f" {way[images['orientation']]}"
        )
    return notes


def recipe_differences(recipe: Mapping[str, str], reference: Mapping[str, Any]) -> list[str]:
    """Where samples become pixels in another way than the images did that reference statistics were made of.

    Images that are measured now have the recipe of the samples. "none" says nothing: the images came as they are.
    """
    protocol = reference.get("protocol", {})
    theirs = {**protocol.get("images", {}), **protocol}
    differing = [
        key
        for key, value in recipe.items()
        if key in theirs and {value, theirs[key]}.isdisjoint({"none"}) and theirs[key] != value
    ]
    return [
        f"{key} of the samples is {recipe[key]!r}, that of reference {reference['source']} is {theirs[key]!r}: the"
        " distance is not a published one"
        for key in differing
    ]


def network_warnings(extractors: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know about the networks, given `evaluator.networks.extractor_facts`."""
    notes = []
    for name, facts in extractors.items():
        if facts.get("official") is False:
            notes.append(
                f"the weights of {name} are not the published file: numbers from elsewhere do not compare"
            )
        if facts["approximate"]:
            notes.append(f"{name} ran in reduced precision: good for curves, not for a number to be reported")
    return notes
