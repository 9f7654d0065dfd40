import numpy as np
import pytest
import torch

from evaluator.metrics.bootstrap import bootstrap_distances
from evaluator.metrics.fid import frechet_distance
from evaluator.moments import statistics_of
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fdr_extras"), golden_json("fdr_extras")
REAL, FAKE = torch.from_numpy(ARRAYS["real"]), torch.from_numpy(ARRAYS["fake"])


def test_the_golden_draws():
    found = bootstrap_distances(FAKE, statistics_of(REAL), ARRAYS["bootstrap"])
    expected = VALUES["bootstrap_fd"]
    assert found == pytest.approx(expected["values"], rel=1e-8)
    assert np.std(found, ddof=1) == pytest.approx(expected["sd"], rel=1e-8)


def test_the_mean_lies_above_the_distance():
    """Why the deviation is reported, and not the mean."""
    real, fake = statistics_of(REAL), statistics_of(FAKE)
    distance = frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)
    assert distance == pytest.approx(VALUES["bootstrap_fd"]["fd"], rel=1e-8)
    assert np.mean(bootstrap_distances(FAKE, real)) > distance


def test_draws_are_fixed():
    assert bootstrap_distances(FAKE, statistics_of(REAL)) == bootstrap_distances(FAKE, statistics_of(REAL))
