import pytest
import torch

from evaluator.metrics.fd_infinity import fd_infinity
from evaluator.moments import statistics_of
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fdr_extras"), golden_json("fdr_extras")
REAL, FAKE = torch.from_numpy(ARRAYS["real"]), torch.from_numpy(ARRAYS["fake"])


def test_the_line_of_the_golden_order():
    found, expected = fd_infinity(FAKE, statistics_of(REAL), order=ARRAYS["order"]), VALUES["fd_infinity"]
    assert found.counts == expected["counts"]
    assert found.distances == pytest.approx(expected["fd"], rel=1e-7)
    assert found.intercept == pytest.approx(expected["intercept"], rel=1e-7)
    assert found.slope == pytest.approx(expected["slope"], rel=1e-7)


def test_the_order_is_fixed():
    assert fd_infinity(FAKE, statistics_of(REAL)) == fd_infinity(FAKE, statistics_of(REAL))


def test_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 20"):
        fd_infinity(FAKE[:19], statistics_of(REAL))
    assert len(fd_infinity(FAKE[:20], statistics_of(REAL)).counts) == 15
    assert torch.isfinite(torch.tensor(fd_infinity(FAKE[:20], statistics_of(REAL)).intercept))
