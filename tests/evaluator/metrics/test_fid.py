import math

import numpy as np
import pytest
import torch

from evaluator.metrics.fid import frechet_distance
from evaluator.moments import Moments
from tests.evaluator.exact import frechet_distance_of_features
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fid_math"), golden_json("fid_math")
A, B = torch.from_numpy(ARRAYS["A"]), torch.from_numpy(ARRAYS["B"])


def moments(features: torch.Tensor) -> Moments:
    result = Moments(features.shape[1])
    result.update(features)
    return result


def by_covariance(x: torch.Tensor, y: torch.Tensor, counts: bool = False) -> float:
    one, two = moments(x), moments(y)
    known = {"count1": one.count, "count2": two.count} if counts else {}
    return frechet_distance(one.mean, one.covariance, two.mean, two.covariance, **known)


@pytest.mark.parametrize("route", [by_covariance, frechet_distance_of_features])
def test_values_of_the_published_tools(route):
    assert route(A, B) == pytest.approx(VALUES["fid_AB_nuclear_norm"], abs=1e-8)
    assert route(A, B) == pytest.approx(VALUES["fid_AB_pytorch_fid"], abs=1e-8)
    assert route(A, B) == pytest.approx(VALUES["fid_AB_torch_fidelity"], abs=1e-5)  # float32 means
    assert route(A, B) == pytest.approx(VALUES["adm_fid_AB"], abs=1e-5)
    assert abs(route(A, B) - VALUES["fid_AB_population_covariance"]) > 1e-3  # the divisor is N - 1
    assert route(A[:, :24], B[:, :24]) == pytest.approx(VALUES["fid_AB_first24_mp40"], abs=1e-9)
    assert abs(route(A, A)) <= 1e-6 and abs(route(A, B) - route(B, A)) <= 1e-9


def test_the_tokenizer_evaluator_of_the_original():
    expected = VALUES["one_d_tokenizer_rfid_first400"]
    assert by_covariance(A[:400], B) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("swapped", [False, True])
def test_known_answer_of_an_ill_conditioned_pair(swapped):
    pair = (ARRAYS["MU1"], ARRAYS["S1"]), (ARRAYS["MU2"], ARRAYS["S2"])
    one, two = reversed(pair) if swapped else pair
    assert frechet_distance(*one, *two) == pytest.approx(VALUES["fid_known_exact"], abs=1e-8)


@pytest.mark.parametrize("counts", [False, True])
def test_fewer_samples_than_dimensions(counts):
    x, y, exact = A[:40], B[:30], VALUES["fid_singular_exact_nuclear_norm"]
    assert frechet_distance_of_features(x, y) == pytest.approx(exact, abs=1e-8)
    assert by_covariance(x, y, counts) == pytest.approx(exact, abs=1e-8)
    assert by_covariance(y, x, counts) == pytest.approx(exact, abs=1e-8)
    # One set alone is singular.
    mixed = frechet_distance_of_features(A, y)
    assert by_covariance(A, y, counts) == pytest.approx(mixed, abs=1e-8)
    assert by_covariance(y, A, counts) == pytest.approx(mixed, abs=1e-8)


def test_dead_features():
    x, y = A.clone(), B.clone()
    x[:, 5] = y[:, 5] = 0.0
    x[:, 9] = 0.25
    for route in (by_covariance, frechet_distance_of_features):
        assert route(x, y) == pytest.approx(VALUES["fid_dead_features_nuclear_norm"], abs=1e-6)


def test_diagonal_gaussians_have_a_closed_form():
    rng = np.random.default_rng(0)
    mean1, mean2, sd1, sd2 = rng.random((4, 20))
    expected = ((mean1 - mean2) ** 2).sum() + ((sd1 - sd2) ** 2).sum()
    value = frechet_distance(mean1, np.diag(sd1**2), mean2, np.diag(sd2**2))
    assert value == pytest.approx(expected, abs=1e-12)
    # A point: nothing remains but its distance and the other trace.
    point = frechet_distance(mean1, np.zeros((20, 20)), mean2, np.diag(sd2**2))
    assert point == pytest.approx(((mean1 - mean2) ** 2).sum() + (sd2**2).sum(), abs=1e-12)
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(5.0, abs=1e-12)


def test_matrix_root_of_scipy_agrees():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = A[:, :20].double().numpy(), B[:, :20].double().numpy()
    one, two = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert frechet_distance(x.mean(0), one, y.mean(0), two) == pytest.approx(expected, abs=1e-7)


def test_torch_fidelity_agrees_on_random_features():
    tool = pytest.importorskip("torch_fidelity.metric_fid")
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(300, 40, generator=draws, dtype=torch.float64)
    y = torch.rand(200, 40, generator=draws, dtype=torch.float64).square()
    one, two = tool.fid_features_to_statistics(x), tool.fid_features_to_statistics(y)
    (expected,) = tool.fid_statistics_to_metric(one, two, verbose=False).values()
    assert by_covariance(x, y) == pytest.approx(expected, abs=1e-9)


def test_statistics_stored_in_float32_still_work():
    one, two = moments(A[:40]), moments(B)
    rounded = one.mean.float(), one.covariance.float()
    value = frechet_distance(*rounded, two.mean, two.covariance, count1=40)
    assert value == pytest.approx(frechet_distance_of_features(A[:40], B), abs=1e-3)


def test_damaged_statistics_are_refused():
    good = np.zeros(3), np.eye(3)
    for bad, message in [
        ((np.zeros(4), np.eye(4)), "sizes 3 and 4"),
        ((np.zeros(3), np.eye(4)), r"second statistics: mean \(3,\) and covariance \(4, 4\)"),
        ((np.array([0, math.nan, 0]), np.eye(3)), "not finite"),
        ((np.zeros(3), np.diag([1.0, -0.5, 1.0])), "not a covariance"),
    ]:
        with pytest.raises(ValueError, match=message):
            frechet_distance(*good, *bad)


@pytest.mark.slow
def test_inception_size_of_low_rank_is_exact():
    draws = torch.Generator().manual_seed(0)
    mix = torch.randn(2048, 2048, generator=draws, dtype=torch.float64) / 45
    x, y = (torch.rand(n, 2048, generator=draws, dtype=torch.float64) @ mix for n in (300, 150))
    assert by_covariance(x, y, counts=True) == pytest.approx(frechet_distance_of_features(x, y), abs=1e-8)


def test_a_set_of_equal_images_has_a_distance():
    draws = np.random.default_rng(0)
    varied, same = draws.normal(size=(50, 6)) + 3, np.tile(draws.normal(size=6) + 3, (40, 1)) * (1 + 1e-16)
    moments = [Moments(6), Moments(6)]
    for part, features in zip(moments, (varied, same), strict=True):
        part.update(torch.from_numpy(features))
    noise = np.diag([1e-17, -4e-17, 0, 0, 0, 0])  # what sums of squares leave behind
    covariances = [moments[0].covariance, torch.from_numpy(noise)]
    expected = ((moments[0].mean - moments[1].mean) ** 2).sum() + covariances[0].trace()
    for first, second in ((0, 1), (1, 0)):
        found = frechet_distance(
            moments[first].mean, covariances[first], moments[second].mean, covariances[second]
        )
        assert found == pytest.approx(float(expected), rel=1e-12)
