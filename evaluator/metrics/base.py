"""What a metric says about itself; `evaluator.metrics.METRICS` holds all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch

from evaluator.protocol import ProtocolSettings

HEADLINE_COUNT = 50_000  # images behind the numbers that papers report


class Collector(Protocol):
    """What is kept of the features of a set of images."""

    def update(self, features: torch.Tensor, positions: torch.Tensor) -> None:
        """Add features [B, d] of the images at `positions` int64 [B]."""

    def result(self, device: torch.device | str = "cpu") -> Any:
        """What `Metric.compute` takes, over all processes, all of which must call it."""


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """One metric. Subclasses say how it is computed, instances on which features.

    Attributes:
        name: in options and results.
        features: kind of features that it takes of every image (`evaluator.networks`), "" for pairs of images.
        network: what compares the pairs, a key of `evaluator.networks.NETWORKS`; "" if there is none.
        usual_for: what it is measured of if no metrics are named: "samples", "reconstructions" (against their
            originals), "other_images" (reconstructions against a reference).
        training: runs that can measure it: "tokenizer", "generator".
        compares: sets of images, pairs of them, or nothing: it describes the samples alone.
        counted: biased by the number of images, which its name carries unless it is 50,000: fid_5k.
        spread: its last number is a standard deviation, whose name ends in `_std`.
        in_references: reference files hold what it compares with; otherwise it needs the images.
        keeps: class of what is kept of the features.
    """

    name: str
    features: str = ""
    network: str = ""
    usual_for: tuple[str, ...] = ()
    training: tuple[str, ...] = ()

    compares: ClassVar[Literal["nothing", "sets", "pairs"]] = "sets"
    counted: ClassVar[bool] = False
    spread: ClassVar[bool] = False
    in_references: ClassVar[bool] = False
    keeps: ClassVar[type] = type(None)

    @property
    def values(self) -> tuple[str, ...]:
        """Names of its numbers, without spread and number of images."""
        return (self.name,)

    @property
    def key(self) -> tuple[str, type]:
        """What is kept of which features; metrics with the same key share one collector."""
        return self.features, self.keeps

    def result_names(self, count: int) -> list[str]:
        """Names of all its numbers, measured of `count` images."""
        names = [with_count(name, count) if self.counted else name for name in self.values]
        return [*names, f"{names[0]}_std"] if self.spread else names

    def collector(self, dim: int, settings: ProtocolSettings, num_images: int | None) -> Collector:
        """What is fed with features of size `dim`.

        Args:
            dim: size of a feature vector.
            settings: of the protocol.
            num_images: how many there will be over all processes, if that is known.
        """
        return self.keeps(dim)

    @abstractmethod
    def compute(
        self, own: Any, reference: Any, *, settings: ProtocolSettings, device: torch.device | str
    ) -> Sequence[float]:
        """Its numbers, in the order of `result_names`; the main process alone calls it.

        Args:
            own: result of the collector of the samples; of `ImageQuality` for pairs.
            reference: the same of the reference; None if nothing is compared.
            settings: of the protocol.
            device: where it may compute.
        """

    def misnamed(self, image_set: str, same_count: bool) -> str | None:
        """Why a distance to these images must not have this name, or None.

        Args:
            image_set: what the reference shows, see `evaluator.reference.Reference`.
            same_count: whether a reference of undescribed images has as many as there are samples.
        """
        return None

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        """What a result says about how it was computed."""
        return {}

    def warnings(
        self, samples: Mapping[str, Any], reference: Mapping[str, Any] | None, settings: ProtocolSettings
    ) -> list[str]:
        """What a reader must know, given `image_facts` of the samples and `Reference.facts`."""
        return []


def with_count(name: str, count: int) -> str:
    """The name with the number of images unless they are 50,000: fid_5k, is_1234.

    A Frechet distance is biased upward by about 1 / N, and an Inception Score grows with N, so that such a number
    must not be mistaken for the one that papers report.
    """
    if count == HEADLINE_COUNT:
        return name
    return f"{name}_{count // 1000}k" if count % 1000 == 0 else f"{name}_{count}"
