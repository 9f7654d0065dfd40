"""All metrics. A new one is a file beside this one, and a line in `METRICS`."""

from collections.abc import Sequence

from common.build import ConfigError, nearest
from evaluator.metrics.authenticity import AuthenticityMetric
from evaluator.metrics.base import Metric, with_count
from evaluator.metrics.bootstrap import BootstrapMetric
from evaluator.metrics.density_coverage import DensityCoverageMetric
from evaluator.metrics.fd_infinity import FrechetInfinityMetric
from evaluator.metrics.fid import FrechetMetric, GenerationFID, ReconstructionFID
from evaluator.metrics.frechet_ratio import ratio_metrics
from evaluator.metrics.image_quality import PSNR, SSIM, PairMetric
from evaluator.metrics.inception_score import InceptionScoreMetric
from evaluator.metrics.kid import KernelMetric
from evaluator.metrics.mind import MindMetric
from evaluator.metrics.per_class import PerClassMetric
from evaluator.metrics.precision_recall import PrecisionRecallMetric
from evaluator.spaces import SPACES

SAMPLES, RECONSTRUCTIONS, OTHER_IMAGES = "samples", "reconstructions", "other_images"
_PAIRS = {"usual_for": (RECONSTRUCTIONS, OTHER_IMAGES), "training": ("tokenizer",)}
_ALL = {"usual_for": (SAMPLES, RECONSTRUCTIONS, OTHER_IMAGES), "training": ("tokenizer", "generator")}

# Measured in every other space under the name followed by that of the space: mind_dinov2.
IN_SPACES: dict[str, type[Metric]] = {
    "kid": KernelMetric,
    "precision_recall": PrecisionRecallMetric,
    "mind": MindMetric,
    "density_coverage": DensityCoverageMetric,
    "authenticity": AuthenticityMetric,
    "fd_infinity": FrechetInfinityMetric,
    "fd_bootstrap": BootstrapMetric,
    "fd_per_class": PerClassMetric,
}
OTHER_SPACES = [name for name in SPACES if name != "inception"]  # whose metrics have the plain names

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FrechetMetric(
            name="fid", features="pool", usual_for=(SAMPLES, OTHER_IMAGES), training=("generator",)
        ),
        ReconstructionFID(
            name="rfid", features="pool", usual_for=(RECONSTRUCTIONS,), training=("tokenizer",)
        ),
        GenerationFID(name="gfid", features="pool"),
        FrechetMetric(name="sfid", features="spatial", usual_for=(SAMPLES,), training=("generator",)),
        InceptionScoreMetric(name="is", features="logits", **_ALL),
        KernelMetric(name="kid", features="pool"),
        PrecisionRecallMetric(name="precision_recall", features="pool", usual_for=(SAMPLES,)),
        MindMetric(name="mind", features="pool"),
        DensityCoverageMetric(name="density_coverage", features="pool"),
        AuthenticityMetric(name="authenticity", features="pool"),
        FrechetInfinityMetric(name="fid_infinity", features="pool"),
        BootstrapMetric(name="fid_bootstrap", features="pool"),
        PerClassMetric(name="fid_per_class", features="pool"),
        *ratio_metrics(),
        *(kind(name=f"{n}_{s}", features=s) for s in OTHER_SPACES for n, kind in IN_SPACES.items()),
        FrechetMetric(name="fd_dinov2_dgm", features="dinov2_dgm"),
        FrechetMetric(name="fd_titok_openmoji", features="titok_openmoji"),
        KernelMetric(name="kd_titok_openmoji", features="titok_openmoji"),
        PSNR(name="psnr", **_PAIRS),
        SSIM(name="ssim", **_PAIRS),
        PairMetric(name="lpips", network="lpips", training=("tokenizer",)),
    )
}


def known_metrics() -> str:
    """All names for a message, those in other spaces in braces."""
    spaced = {f"{name}_{space}" for name in IN_SPACES for space in OTHER_SPACES}
    plain = ", ".join(name for name in METRICS if name not in spaced)
    return f"{plain}, {{{','.join(IN_SPACES)}}}_{{{','.join(OTHER_SPACES)}}}"


def usual_metrics(what: str) -> list[Metric]:
    """Those measured of `what` (see `Metric.usual_for`) if none are named."""
    return [metric for metric in METRICS.values() if what in metric.usual_for]


def training_metrics(run: str) -> list[str]:
    """Names of those that runs of a "tokenizer" or a "generator" can measure."""
    return [name for name, metric in METRICS.items() if run in metric.training]


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ConfigError if a name is unknown or given twice, or if there is none."""
    expected = f"expected some of {known_metrics()}"
    if not metrics:
        raise ConfigError(f"metrics=[] names no metric; {expected}")
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"metrics: {name!r} is unknown{nearest(name, list(METRICS))}; {expected}")
    if len(set(metrics)) < len(metrics):
        raise ConfigError(f"metrics={list(metrics)} names one twice")


def with_parts(metrics: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics, each after those that it is made of (fdr6: its six ratios), none twice."""
    return tuple(dict.fromkeys(name for metric in metrics for name in (*METRICS[metric].parts, metric)))


def check_names(metrics: Sequence[str], image_set: str, same_count: bool = True) -> None:
    """Raise ConfigError if a metric's name promises another reference, see `Metric.misnamed`."""
    for name in metrics:
        if reason := METRICS[name].misnamed(image_set, same_count):
            raise ConfigError(f"metrics: {reason}")


def result_name(name: str, count: int) -> str:
    """A metric's name in results: fid_5k if it is biased by the number of images, see `with_count`."""
    return with_count(name, count) if name in METRICS and METRICS[name].counted else name
