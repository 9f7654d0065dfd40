"""FDr: Frechet distances in units of what real, held-out images have, and their mean over six spaces, FDr6."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluator.metrics.base import Metric
from evaluator.metrics.fid import FrechetMetric
from evaluator.protocol import ProtocolSettings
from evaluator.spaces import SPACES, Space


@dataclass(frozen=True, kw_only=True)
class FrechetRatio(FrechetMetric):
    """FD in a space, divided by its constant; the FD itself is the second value."""

    space: Space

    @property
    def values(self) -> tuple[str, ...]:
        return self.name, f"fd_in_{self.space.name}"

    def compute(self, own: Any, reference: Any, **options: Any) -> Sequence[float]:
        distance = super().compute(own, reference, **options)[0]
        return [distance / self.space.constant, distance]

    def warnings(
        self, samples: Mapping[str, Any], reference: Mapping[str, Any] | None, settings: ProtocolSettings
    ) -> list[str]:
        notes = super().warnings(samples, reference, settings)
        shown = (reference or {}).get("image_set")
        if shown not in (None, "training", "unknown"):
            notes.append(
                f"{self.name}: its constant belongs to the training images of ImageNet as reference, not to {shown}"
            )
        return notes

    def facts(self, settings: ProtocolSettings, count: int, reference_count: int) -> dict[str, Any]:
        return {self.name: self.space.facts()}


class MeanRatio(Metric):
    """FDr6: the plain mean of the ratios in all spaces, of nothing less."""

    counted = True
    compares = "nothing"

    def compute(self, own: Sequence[float], reference: Any, **_: Any) -> Sequence[float]:
        """Of the ratios in the order of `parts`."""
        return [sum(own) / len(own)]


def ratio_metrics() -> list[Metric]:
    """FDr in every space, and FDr6."""
    ratios: list[Metric] = [
        FrechetRatio(name=f"fdr_{space.name}", features=space.features, space=space, training=("generator",))
        for space in SPACES.values()
    ]
    parts = tuple(ratio.name for ratio in ratios)
    return [*ratios, MeanRatio(name="fdr6", parts=parts, training=("generator",))]


def fdr6(distances: Mapping[str, float]) -> float:
    """FDr6 of FDs by the names of their spaces; ValueError if a space is missing or unknown."""
    if missing := [name for name in SPACES if name not in distances]:
        raise ValueError(f"FDr6 is the mean over {len(SPACES)} spaces, {', '.join(missing)} missing")
    if unknown := [name for name in distances if name not in SPACES]:
        raise ValueError(f"{', '.join(unknown)}: no spaces of FDr6, which are {', '.join(SPACES)}")
    return sum(distances[name] / space.constant for name, space in SPACES.items()) / len(SPACES)
