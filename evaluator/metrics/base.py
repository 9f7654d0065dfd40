"""What a metric says about itself; `evaluator.metrics.METRICS` holds all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch

from evaluator.protocol import ProtocolSettings

HEADLINE_COUNT = 50_000  # images behind the numbers that papers report
ROWS = 4096  # feature vectors that are looked at together


class Collector(Protocol):
    """What is kept of the features of a set of images."""

    def update(self, features: torch.Tensor, positions: torch.Tensor) -> None:
        """Add features [B, d] of the images at `positions` int64 [B]."""

    def result(self, device: torch.device | str = "cpu") -> Any:
        """What `Metric.compute` takes, over all processes, all of which must call it."""


class Detailed(NamedTuple):
    """Numbers of a metric, and what a result says about them besides (JSON values)."""

    numbers: Sequence[float]
    details: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """One metric. Subclasses say how it is computed, instances on which features."""

    name: str  # in options and results
    features: str = ""  # kind of features of every image (`evaluator.networks`); "" for pairs of images
    network: str = ""  # that compares pairs, a key of `evaluator.networks.NETWORKS`
    # What it is measured of if no metrics are named: "samples", "reconstructions" (against their originals),
    # "other_images" (reconstructions against a reference).
    usual_for: tuple[str, ...] = ()
    training: tuple[str, ...] = ()  # runs that can measure it: "tokenizer", "generator"
    parts: tuple[str, ...] = ()  # metrics whose first numbers it is made of; measured whenever it is

    # "nothing": describes samples alone, or is made of other metrics.
    compares: ClassVar[Literal["nothing", "sets", "pairs"]] = "sets"
    counted: ClassVar[bool] = False  # biased by the number of images: its name carries it
    spread: ClassVar[bool] = False  # its last number is a standard deviation, named `_std`
    in_references: ClassVar[bool] = False  # reference files hold what it compares with
    by_class: ClassVar[bool] = (
        False  # `compute` also takes `labels`, int64 [N] of samples and [M] of reference images
    )
    keeps: ClassVar[type] = type(None)  # collector of the features
    compares_with: ClassVar[type | None] = None  # collector of the reference's, None = the same

    @property
    def values(self) -> tuple[str, ...]:
        return (self.name,)  # without spread and number of images

    @property
    def key(self) -> tuple[str, type]:
        return self.features, self.keeps  # metrics with the same key share one collector

    @property
    def reference_key(self) -> tuple[str, type]:
        return self.features, self.compares_with or self.keeps

    def result_names(self, count: int) -> list[str]:
        """Names of all its numbers, measured on `count` images."""
        names = [with_count(name, count) if self.counted else name for name in self.values]
        return [*names, f"{names[0]}_std"] if self.spread else names

    def collector(self, dim: int, settings: ProtocolSettings, num_images: int | None) -> Collector:
        return self.keeps(dim)

    def reference_collector(self, dim: int, settings: ProtocolSettings) -> Collector:
        return self.collector(dim, settings, None) if self.compares_with is None else self.compares_with(dim)

    @abstractmethod
    def compute(
        self, own: Any, reference: Any, *, settings: ProtocolSettings, device: torch.device | str
    ) -> Sequence[float] | Detailed:
        """Its numbers, in the order of `result_names`; the spread may be missing. Only the main process calls it.

        `own` is the result of the collector of the samples (of `ImageQuality` for pairs; the numbers of `parts`),
        `reference` that of the reference, None if nothing is compared.
        """

    def misnamed(self, image_set: str, same_count: bool) -> str | None:
        """Why a distance to these images must not have this name, or None.

        Args:
            image_set: what the reference shows, see `evaluator.reference.Reference`.
            same_count: whether a reference of undescribed images has as many as there are samples.
        """
        return None

    def impossible(self, count: int, reference_count: int | None, settings: ProtocolSettings) -> str | None:
        """Why so few images do not give it, or None; `reference_count` is None where that does not matter."""
        if self.compares == "sets" and min(count, reference_count or 2) < 2:
            return f"{self.name} needs at least 2 samples and 2 reference images"
        return None

    def too_small(self, side: int, quality: str) -> str | None:
        """Why images with this shorter side do not give it, or None; `quality` is that of `ImageQuality`."""
        return None

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        """How the numbers were computed, for results."""
        return {}

    def warnings(
        self, samples: Mapping[str, Any], reference: Mapping[str, Any] | None, settings: ProtocolSettings
    ) -> list[str]:
        """What a reader must know, given `image_facts` of the samples and `Reference.facts`."""
        return []


def with_count(name: str, count: int) -> str:
    """The name with the number of images unless they are 50,000: fid_5k, is_1234."""
    # A Frechet distance is biased upward by about 1 / N and an Inception Score grows with N: neither may be mistaken
    # for the number that papers report.
    if count == HEADLINE_COUNT:
        return name
    return f"{name}_{count // 1000}k" if count % 1000 == 0 else f"{name}_{count}"


def require_features(*sets: torch.Tensor) -> None:
    """Raise ValueError unless all are finite features [N, d] of one kind; in blocks, for rows in memory maps."""
    if any(x.ndim != 2 or x.shape[1] != sets[0].shape[1] for x in sets):
        shapes = " and ".join(str(tuple(x.shape)) for x in sets)
        raise ValueError(f"features of shapes {shapes}, expected [N, d] and [M, d]")
    if not all(torch.isfinite(rows).all() for features in sets for rows in features.split(ROWS)):
        raise ValueError("features hold values that are not finite")
