import numpy as np
import pytest
import torch

from evaluator import moments
from evaluator.moments import Moments
from tests.evaluator.processes import in_two_processes, needs_fork


def features(count: int, dim: int = 6) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(count)) * 0.3 + 0.4


def measured(*batches: torch.Tensor) -> Moments:
    result = Moments(batches[0].shape[1])
    for batch in batches:
        result.update(batch)
    return result


def assert_same(one: Moments, two: Moments) -> None:
    assert one.count == two.count
    torch.testing.assert_close(one.mean, two.mean, atol=1e-14, rtol=0)
    torch.testing.assert_close(one.covariance, two.covariance, atol=1e-14, rtol=0)


def test_mean_and_covariance_are_those_of_numpy():
    x = features(50)
    result = measured(*x.split(7))
    wide = x.double().numpy()
    np.testing.assert_allclose(result.mean, wide.mean(0), atol=1e-14)
    np.testing.assert_allclose(result.covariance, np.cov(wide, rowvar=False), atol=1e-14)
    assert torch.equal(result.covariance, result.covariance.T)


def test_sums_are_float64_whatever_the_features():
    # In float32 the hundredth decimal of a thousand would vanish from the sum of squares.
    x = (1000 + features(400)).float()
    expected = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(measured(x).covariance, expected, rtol=1e-7, atol=1e-8)
    half = features(9).bfloat16()
    assert_same(measured(half), measured(half.double()))


def test_large_updates_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr(moments, "ROWS", 4)
    x = features(11)
    result = measured(x)
    monkeypatch.undo()
    assert_same(result, measured(x))


def test_alone_the_result_is_mean_and_covariance():
    own = measured(features(5))
    found = own.result()
    own.update(features(5))
    assert found.count == 5 and own.count == 10
    np.testing.assert_array_equal(found.mean, measured(features(5)).mean)


def _share(rank: int) -> None:
    x = features(21)
    own = measured(x[:4] if rank else x[4:])
    found, whole = own.result(), measured(x)
    np.testing.assert_allclose(found.mean, whole.mean, atol=1e-14, rtol=0)
    np.testing.assert_allclose(found.covariance, whole.covariance, atol=1e-14, rtol=0)
    assert found.count == whole.count
    assert own.count == (4 if rank else 17)


@needs_fork
def test_two_processes_equal_one(tmp_path):
    in_two_processes(_share, tmp_path)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 5\).*\[B, 6\]"):
        Moments(6).update(torch.zeros(3, 5))
    broken = features(4)
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 4"):
        Moments(6).update(broken)
    with pytest.raises(ValueError, match="dim=0"):
        Moments(0)
    with pytest.raises(ValueError, match="undefined"):
        _ = Moments(2).mean
    with pytest.raises(ValueError, match="at least 2"):
        _ = measured(features(1)).covariance
