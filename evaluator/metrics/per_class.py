"""Frechet distance within each class, and its mean (intra-FID, arXiv:1802.05637).

A model may be good on the whole and fail at some classes, or draw one class in place of another, which a distance of
whole sets hardly sees.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evaluator.feature_store import FeatureStore
from evaluator.metrics.base import Detailed, Metric, require_features


def class_distances(
    generated: torch.Tensor, labels: np.ndarray, reference: torch.Tensor, reference_labels: np.ndarray
) -> dict[int, float]:
    """Distances by class of features [N, d] and [M, d] with labels int64 [N] and [M], in float64.

    With few images of a class it is far above that of many; compare equal numbers only.

    Raises:
        ValueError: the sets hold other classes, or a class has a single image in one of them.
    """
    require_features(generated, reference)
    if reason := differing_classes(labels, reference_labels):
        raise ValueError(reason)
    found = {}
    for label in np.unique(labels).tolist():
        own, others = (
            rows[torch.from_numpy(np.flatnonzero(of == label))].detach().cpu().double()
            for rows, of in ((generated, labels), (reference, reference_labels))
        )
        found[label] = _distance(own, others)
    return found


def differing_classes(
    labels: np.ndarray | None,
    reference_labels: np.ndarray | None,
    names: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> str | None:
    """Why the classes of two sets cannot be compared one by one, or None; `names` are those that labels number."""
    if labels is None or reference_labels is None:
        which = "samples" if labels is None else "reference images"
        return f"the {which} have no labels: folders of classes, labels in an NPZ, or .cls members give them"
    if None not in names and list(names[0]) != list(names[1]):
        lone = sorted({*names[0]} ^ {*names[1]})[:3]
        return (
            f"samples and reference have folders of other classes: {', '.join(lone)} are in one of them only"
        )
    (own, counts), (others, other_counts) = (
        np.unique(values, return_counts=True) for values in (labels, reference_labels)
    )
    if not np.array_equal(own, others):
        lone = sorted({*own.tolist()} ^ {*others.tolist()})[:3]
        return f"samples and reference hold other classes: {lone} are in one of them only"
    if (least := min(counts.min(initial=2), other_counts.min(initial=2))) < 2:
        return f"every class needs at least 2 samples and 2 reference images, one has {least}"
    return None


def _distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Frechet distance of features [n, d] and [m, d], whose covariances are never formed: n and m are far below d."""
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    # With S1 = x^T x and S2 = y^T y, the roots of the eigenvalues of S1 S2 are the singular values of x y^T.
    root = torch.linalg.svdvals(x @ y.T).sum()
    return float((mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2.0 * root)


class PerClassMetric(Metric):
    """Mean over classes of the Frechet distance within each, on any kind of features."""

    by_class = True
    counted = True
    keeps = FeatureStore

    def compute(
        self,
        own: torch.Tensor,
        reference: torch.Tensor,
        *,
        labels: tuple[np.ndarray, np.ndarray],
        **_: Any,
    ) -> Detailed:
        found = class_distances(own, labels[0], reference, labels[1])
        worst: Mapping[int, float] = dict(sorted(found.items(), key=lambda item: -item[1]))
        numbers: Sequence[float] = [float(np.mean(list(found.values())))]
        return Detailed(numbers, {"classes": {str(label): value for label, value in worst.items()}})
