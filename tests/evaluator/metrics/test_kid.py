import pytest
import torch

from evaluator.metrics import kid
from evaluator.metrics.kid import kernel_distance
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fid_math"), golden_json("fid_math")
REAL, GENERATED = torch.from_numpy(ARRAYS["A"]), torch.from_numpy(ARRAYS["B"])


def test_torch_fidelity_stored_values():
    result = kernel_distance(GENERATED, REAL, subsets=10, subset_size=100)
    assert list(result) == pytest.approx(VALUES["kid_torch_fidelity_subsets10_size100"], rel=2e-5)
    result = kernel_distance(GENERATED, REAL, subsets=1, subset_size=400)
    assert result.mean == pytest.approx(VALUES["kid_torch_fidelity_subsets1_size400"], rel=2e-5)
    assert result.std == 0.0


@pytest.mark.parametrize("options", [{}, {"seed": 3}])
def test_torch_fidelity_agrees_on_random_features(options):
    tool = pytest.importorskip("torch_fidelity.metric_kid")
    draws = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 12, generator=draws, dtype=torch.float64) for n in (70, 90))
    settings = {"rng_seed": options["seed"]} if options else {}
    expected = tool.kid_features_to_metric(x, y, kid_subsets=5, kid_subset_size=40, verbose=False, **settings)
    result = kernel_distance(x, y, subsets=5, subset_size=40, **options)
    assert list(result) == pytest.approx(list(expected.values()), rel=1e-9)


def test_definition_pair_by_pair():
    x, y = GENERATED[:6].double(), REAL[:6].double()

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 30
    across = sum(k(x[i], y[j]) for i, j in pairs) / 36
    result = kernel_distance(x, y, subsets=1, subset_size=6)
    assert result.mean == pytest.approx(within - 2 * across, rel=1e-10)


def test_one_distribution_is_near_zero_and_may_be_negative():
    parts = torch.randn(800, 8, generator=torch.Generator().manual_seed(0)).split(400)
    values = [kernel_distance(*parts, subsets=20, subset_size=50, seed=seed).mean for seed in range(3)]
    far = kernel_distance(parts[0], parts[1] + 1, subsets=20, subset_size=50).mean
    assert all(abs(value) < far / 20 for value in values)
    same = kernel_distance(parts[0], parts[0], subsets=1, subset_size=400)
    assert same.mean < 0  # unbiased, hence below zero for one and the same set


def test_kernels_are_summed_in_blocks(monkeypatch):
    whole = kernel_distance(GENERATED, REAL, subsets=2, subset_size=100)
    monkeypatch.setattr(kid, "ROWS", 7)
    assert kernel_distance(GENERATED, REAL, subsets=2, subset_size=100) == pytest.approx(whole, rel=1e-12)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="from 2 to 400"):
        kernel_distance(GENERATED, REAL)
    with pytest.raises(ValueError, match=r"\(400, 64\) and \(512, 63\)"):
        kernel_distance(GENERATED, REAL[:, 1:])
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(GENERATED / 0, REAL, subset_size=10)
    with pytest.raises(ValueError, match="subsets=0"):
        kernel_distance(GENERATED, REAL, subsets=0, subset_size=10)
