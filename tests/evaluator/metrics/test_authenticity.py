import numpy as np
import pytest
import torch

from evaluator.metrics import METRICS
from evaluator.metrics.authenticity import nearest_images
from evaluator.protocol import PROTOCOLS
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fdr_extras"), golden_json("fdr_extras")
REAL, FAKE = torch.from_numpy(ARRAYS["real"]), torch.from_numpy(ARRAYS["fake"])


def test_the_original_agrees_exactly():
    found = nearest_images(FAKE, REAL)
    assert np.array_equal(found.indices, ARRAYS["nearest"])
    np.testing.assert_allclose(found.distances, ARRAYS["nearest_distance"], rtol=1e-9)
    assert 100 * found.authenticity == pytest.approx(VALUES["authenticity_float64"], rel=1e-12)


def test_copies_are_the_closest_pairs():
    samples = torch.cat([FAKE[40:50], REAL[[7, 11]]])
    found = nearest_images(samples, REAL)
    pairs = found.closest(3)
    assert [(pair["sample"], pair["reference"], pair["distance"]) for pair in pairs[:2]] == [
        (10, 7, 0.0),
        (11, 11, 0.0),
    ]
    assert pairs[2]["distance"] > 0
    twins = torch.cat([REAL, REAL[:1]])  # an image that the reference holds twice is its own neighbour
    assert nearest_images(REAL[:1], twins).own_distances[0] == 0


def test_a_result_names_the_pairs():
    found = METRICS["authenticity"].compute(FAKE, REAL, settings=PROTOCOLS["adm"], device="cpu")
    assert found.numbers[0] == pytest.approx(VALUES["authenticity_float64"] / 100)
    assert len(found.details["closest_pairs"]) == 16
