import pytest
import torch

from evaluator.metrics.density_coverage import density_coverage
from evaluator.metrics.precision_recall import precision_recall
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fdr_extras"), golden_json("fdr_extras")
REAL, FAKE = torch.from_numpy(ARRAYS["real"]), torch.from_numpy(ARRAYS["fake"])


def test_the_original_agrees_exactly():
    expected = VALUES["prdc_float64"]
    found = density_coverage(FAKE, REAL)
    assert found.density == pytest.approx(expected["density"], rel=1e-15)
    assert found.coverage == expected["coverage"]
    both = precision_recall(FAKE, REAL, neighbours=VALUES["k"])
    assert tuple(both) == pytest.approx((expected["precision"], expected["recall"]), rel=1e-15)


def test_equal_and_disjoint_sets():
    # A ball's border is outside: a point lies in its own ball, but not in that of which it is the k-th neighbour.
    line = torch.arange(8.0)[:, None]
    assert density_coverage(line, line, neighbours=1) == (1.0, 1.0)
    assert density_coverage(FAKE + 1000, REAL) == (0.0, 0.0)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="neighbours=5 must be from 1 to 4"):
        density_coverage(FAKE, REAL[:5])
    with pytest.raises(ValueError, match="not finite"):
        density_coverage(FAKE / 0, REAL)
