"""How the authors of released models measured them, what they published, and why our numbers may differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.console import say
from evaluator.copies import copy_warnings
from evaluator.evaluator import Evaluator
from evaluator.float_rfid import FloatExtractor, FloatRFID
from evaluator.metrics import METRICS, result_name
from evaluator.outcome import Outcome
from evaluator.provenance import network_warnings
from jobs.measuring import ReconstructionMeasurement
from jobs.options.reproduce import REFERENCE
from modeling.pretrained.catalog import RAR, TITOK
from modeling.pretrained.release import Release

TABLE = (*(value for metric in METRICS.values() for value in metric.values), "codebook_usage")
CATALOG = {"is": "inception_score"}  # metrics with another name in the catalog
TOLERANCE = 0.05  # published FIDs have two digits


@dataclass(frozen=True)
class Family:
    """How the authors of some tokenizers measured reconstructions."""

    crop: str = "shorter_edge"  # key of data.transforms.CROPS
    quality: str = "rounded"  # key of evaluator.metrics.image_quality.QUALITY_PROTOCOLS
    metrics: tuple[str, ...] = ("rfid", "is", "psnr", "ssim")
    float_rfid: bool = False  # rFID of float images, before rounding to 8 bit

    @property
    def on_stored(self) -> tuple[str, ...]:
        """Metrics of the evaluator, which sees 8-bit images or converts them by `quality`."""
        return tuple(m for m in self.metrics if m != "rfid" or not self.float_rfid)


_SEED_VOKEN = {"quality": "seed_voken", "metrics": ("rfid", "psnr", "ssim"), "float_rfid": True}
# By the beginning of a name. IBQ's authors resize with another library than those of Open-MAGVIT2.
FAMILIES = {
    "llamagen": Family(crop="adm"),
    "magvit2": Family(crop="bilinear", **_SEED_VOKEN),
    "ibq": Family(crop="bilinear_aliased", **_SEED_VOKEN),
}
# Published results at another size than the tokenizer's own.
OTHER_SIZES = {("magvit2-128", 256): {"rfid": 0.34, "psnr": 26.19}}


def family_of(model: str) -> Family:
    """How the authors of a released tokenizer measured it."""
    return FAMILIES.get(model.partition("-")[0], Family())


def published_at(release: Release, image_size: int | None) -> Mapping[str, float]:
    """Published results of a release, maybe none; at `image_size` pixels unless that is None."""
    return release.metrics if image_size is None else OTHER_SIZES.get((release.name, image_size), {})


def family_measurement(
    family: Family,
    *,
    networks: Mapping[str, Any],
    float_network: FloatExtractor | None = None,
    codebook_size: int | None = None,
    num_images: int | None = None,
    device: torch.device | str = "cpu",
) -> ReconstructionMeasurement:
    """A measurement of reconstructions as the authors of a tokenizer made it; with LPIPS if `networks` has "lpips".

    Families with `float_rfid` need `float_network`. `num_images` counts those of all processes.
    """
    evaluator = Evaluator(
        networks=networks,
        metrics=(*family.on_stored, *(("lpips",) if "lpips" in networks else ())),
        protocol="tokenizer",
        num_images=num_images,
        device=device,
        quality=family.quality,
    )
    rfid = FloatRFID(extractor=float_network, device=device) if family.float_rfid else None
    return ReconstructionMeasurement(evaluator, float_rfid=rfid, codebook_size=codebook_size, device=device)


def conclude(
    outcome: Outcome,
    facts: Mapping[str, Any],
    notes: list[str],
    release: Release,
    image_size: int | None = None,
) -> dict[str, Any]:
    """The content of a result: what was measured beside the published ones, and what may explain a difference.

    `image_size` is None for a tokenizer's own size.
    """
    values, errors = outcome
    notes = notes + network_warnings(facts["extractors"]) + copy_warnings(facts)
    rows = compare(values, published_at(release, image_size), facts["images"])
    apart = [r for r in rows if r["metric"].split("_")[0] in ("gfid", "rfid") and r["difference"] is not None]
    differs = any(abs(row["difference"]) > TOLERANCE for row in apart)
    return {
        "comparison": rows,
        "may_explain": [*notes, *known_differences(release, facts)] if differs else [],
        "metrics": values,
        **({"errors": errors} if errors else {}),
        "warnings": notes,
        "protocol": dict(facts),
    }


def compare(values: Mapping[str, float], published: Mapping[str, float], count: int) -> list[dict[str, Any]]:
    """Rows of metric, measured, published, difference; names carry the number of images unless it is 50,000."""
    rows = []
    for metric in TABLE:
        name, known = result_name(metric, count), published.get(CATALOG.get(metric, metric))
        if name in values:
            apart = None if known is None else values[name] - known
            rows.append({"metric": name, "measured": values[name], "published": known, "difference": apart})
    return rows


def known_differences(release: Release, facts: Mapping[str, Any]) -> list[str]:
    """Known and possible differences between this measurement and the authors'."""
    notes = [f"the weights of {release.name} were not compared with a published hash: none is known"]
    if release.kind == "generator":
        if Path(facts["reference"]["source"]).name != REFERENCE:
            notes.append(f"the reference is not called {REFERENCE}, as that of the published FID is")
        balance = facts["samples"].get("labels", {})
        if balance.get("fewest_images") != balance.get("most_images"):
            notes.append("the classes have different numbers of samples")
        if release.repo in (TITOK, RAR) or release.format == "magvit2_generator":
            notes.append("pixels are rounded to 8 bit; the authors' sampler cut them: half a level darker")
        notes.append("the random numbers are not the authors' (with TF32); each seed gives another FID")
        return notes
    if release.bits_per_image is None:
        notes.append("the mean of the latent distribution is decoded; the authors' code draws from it")
    if family_of(release.name).crop == "bilinear_aliased":
        notes.append("the authors resized images with another library; ours differs by a level or two")
    if facts.get("captions"):
        notes.append(f"the authors' class names may be others than ours: {facts['captions']!r}")
    notes.append("decoders of JPEG differ by a level or two, and the authors' version is not known")
    return notes


def report(result: Mapping[str, Any]) -> None:
    """Print the rows, and what may explain a difference."""

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
