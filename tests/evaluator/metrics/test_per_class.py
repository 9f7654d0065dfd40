import numpy as np
import pytest
import torch

from evaluator.metrics.per_class import class_distances, differing_classes
from tests.evaluator.exact import frechet_distance_of_features
from tests.parity import golden

ARRAYS = golden("fdr_extras")
REAL, FAKE = torch.from_numpy(ARRAYS["real"]), torch.from_numpy(ARRAYS["fake"])
LABELS, REAL_LABELS = np.arange(240) % 3, np.arange(300) * 3 // 300


@pytest.mark.parametrize("count", [240, 21])  # more and fewer images of a class than dimensions
def test_every_class_has_the_distance_of_its_images(count):
    found = class_distances(FAKE[:count], LABELS[:count], REAL, REAL_LABELS)
    for label, value in found.items():
        own, others = FAKE[:count][LABELS[:count] == label], REAL[label == REAL_LABELS]
        assert value == pytest.approx(frechet_distance_of_features(others, own), rel=1e-7)
    assert list(found) == [0, 1, 2]


def test_classes_that_do_not_fit_are_refused():
    assert differing_classes(LABELS, REAL_LABELS) is None
    assert "the samples have no labels" in differing_classes(None, LABELS)
    assert "reference images have no labels" in differing_classes(LABELS, None)
    assert "[3] are in one" in differing_classes(np.array([0, 0, 3, 3]), np.array([0, 0]))
    assert "one has 1" in differing_classes(np.array([0, 0, 1]), np.array([0, 0, 1, 1]))
    assert "dog" in differing_classes(LABELS, LABELS, (["cat", "dog"], ["cat", "mouse"]))
