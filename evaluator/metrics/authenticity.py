"""Copies in a space of features: the nearest reference image of every sample, and how near it is.

A sample is authentic if it lies farther from its nearest reference image than that image from its own nearest neighbour
(arXiv:2102.08921). Use a space that the model was not trained on.
"""

from typing import Any, NamedTuple

import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Detailed, Metric, require_features
from evaluator.neighbours import nearest_rows
from evaluator.protocol import ProtocolSettings

PAIRS = 16  # closest pairs that a result names


class NearestImages(NamedTuple):
    """Per sample: its nearest reference image int64 [N], their distance, and that image's own nearest one, float64."""

    indices: torch.Tensor
    distances: torch.Tensor
    own_distances: torch.Tensor

    @property
    def authenticity(self) -> float:
        """Share of samples that are farther from their nearest image than it is from its own neighbour."""
        return float((self.distances > self.own_distances).double().mean())

    def closest(self, count: int = PAIRS) -> list[dict[str, float]]:
        """The closest pairs, nearest first."""
        order = self.distances.argsort(stable=True)[:count].tolist()
        return [
            {
                "sample": i,
                "reference": int(self.indices[i]),
                "distance": float(self.distances[i]),
                "own_distance": float(self.own_distances[i]),
            }
            for i in order
        ]


def nearest_images(
    generated: torch.Tensor, reference: torch.Tensor, *, device: torch.device | str = "cpu"
) -> NearestImages:
    """For samples [N, d] the nearest of the reference [M, d]; raises ValueError below two reference vectors."""
    require_features(generated, reference)
    found = nearest_rows(generated, reference, device=device)
    indices = found.indices[:, 0]
    used, places = indices.unique(return_inverse=True)  # few images may be nearest to many samples
    own = _nearest_of(used, reference, device)[places]
    return NearestImages(indices, found.squares[:, 0].sqrt(), own)


def _nearest_of(used: torch.Tensor, reference: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Distance of these reference rows to the nearest other row."""
    # The nearest two: one of them is the row itself, at zero, or an equal one.
    two = nearest_rows(reference[used], reference, 2, device=device)
    return two.squares[:, 1].sqrt()


class AuthenticityMetric(Metric):
    """Authenticity and the median distance to the nearest reference image: `authenticity` or `authenticity_<space>`."""

    keeps = FeatureStore

    @property
    def values(self) -> tuple[str, ...]:
        space = self.name.removeprefix("authenticity")
        return (self.name, f"nearest_distance{space}")

    def compute(
        self, own: torch.Tensor, reference: torch.Tensor, *, device: torch.device | str, **_: Any
    ) -> Detailed:
        found = nearest_images(own, reference, device=device)
        return Detailed(
            [found.authenticity, float(found.distances.median())], {"closest_pairs": found.closest()}
        )

    def impossible(self, count: int, reference_count: int | None, settings: ProtocolSettings) -> str | None:
        """A single reference image has no neighbour."""
        if reference_count is None or reference_count > 1:
            return None
        return f"{self.name} needs at least 2 reference images"
