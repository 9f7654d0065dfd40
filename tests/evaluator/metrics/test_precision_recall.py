import pytest
import torch

from evaluator.metrics.precision_recall import PrecisionRecall, manifold_radii, precision_recall
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fid_math"), golden_json("fid_math")
REAL, GENERATED = torch.from_numpy(ARRAYS["A"]), torch.from_numpy(ARRAYS["B"])


@pytest.mark.parametrize("tile", [None, 64, 37])
def test_values_of_the_published_tools(tile):
    for k in (3, 5):
        result = precision_recall(GENERATED, REAL, neighbours=k, tile=tile)
        assert list(result) == pytest.approx(VALUES[f"pr_torch_fidelity_k{k}"], abs=1e-6)
        assert list(result) == pytest.approx(VALUES[f"adm_pr_f64_k{k}_AB"], abs=1e-6)
    assert list(precision_recall(GENERATED, REAL)) == pytest.approx(VALUES["adm_pr_f32_AB"], abs=1e-6)


def test_half_precision_of_adm_moves_single_decisions():
    result = precision_recall(GENERATED, REAL, rule="adm_float16")
    expected = PrecisionRecall(*VALUES["adm_pr_fp16_AB"])
    assert result.precision == pytest.approx(expected.precision, abs=1 / 400 + 1e-9)
    assert result.recall == pytest.approx(expected.recall, abs=1 / 512 + 1e-9)
    assert result != precision_recall(GENERATED, REAL)


def test_half_precision_that_overflows_is_repeated():
    # Squares beyond 65504; without the repetition every distance would be infinite and every point inside.
    result = precision_recall(100 * GENERATED, 100 * REAL, rule="adm_float16")
    assert list(result) == pytest.approx(VALUES["adm_pr_f32_AB"], abs=1e-6)


def test_torch_fidelity_agrees_on_random_features():
    tool = pytest.importorskip("torch_fidelity.metric_prc")
    draws = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 8, generator=draws, dtype=torch.float64) for n in (90, 70))
    expected = tool.calculate_precision_recall_full(x, 0.8 * y, 4)
    assert list(precision_recall(x, 0.8 * y, neighbours=4)) == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]


def test_which_is_which():
    # Half of the generated points are far away; all real points have a generated one at their place.
    real = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    spread = 1000 * torch.arange(1, 41.0)[:, None].expand(40, 4)
    result = precision_recall(torch.cat([real, spread]), real)
    assert result.precision == 0.5 and result.recall == 1.0


def test_identical_and_disjoint_sets():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 1000) == (0.0, 0.0)


def test_radius_leaves_the_point_itself_out():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert manifold_radii(line, 1).tolist() == [1.0, 1.0, 4.0, 16.0]
    assert manifold_radii(line, 2, tile=2).tolist() == [9.0, 4.0, 9.0, 36.0]
    assert manifold_radii(line, 3, tile=1).tolist() == [49.0, 36.0, 16.0, 49.0]


def test_features_far_from_the_origin_lose_nothing():
    x, y = REAL[:100] + 3000.0, GENERATED[:100] + 3000.0

    def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")

    distances = exact(x, y)
    radii = [exact(z, z).sort(1).values[:, 3] for z in (x, y)]  # the first is itself
    precision = (distances <= radii[0][:, None]).any(0).double().mean()
    recall = (distances <= radii[1]).any(1).double().mean()
    assert precision_recall(y, x) == (float(precision), float(recall)) and 0 < recall < 1


def test_allowed_low_precision_of_training_is_suspended():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        result = precision_recall(GENERATED, REAL)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert list(result) == pytest.approx(VALUES["adm_pr_f32_AB"], abs=1e-6)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="neighbours=3 must be from 1 to 2"):
        precision_recall(GENERATED[:3], REAL)
    with pytest.raises(ValueError, match="rule='half'"):
        precision_recall(GENERATED, REAL, rule="half")
    with pytest.raises(ValueError, match=r"\[N, d\] and \[M, d\]"):
        precision_recall(GENERATED[:, 1:], REAL)
    with pytest.raises(ValueError, match="not finite"):
        precision_recall(GENERATED / 0, REAL)
