import pytest
import torch

from evaluator.metrics import mind as module
from evaluator.metrics.mind import mind
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("mind_features"), golden_json("mind_features")
REFERENCE, GENERATED = (torch.from_numpy(ARRAYS[name]) for name in ("reference", "generated"))
FEW = VALUES["few"]


@pytest.mark.parametrize("directions, seed", [(1000, 2020), (64, 2020), (1, 2020), (1000, 7)])
def test_the_tools_agree_on_equal_sets(directions, seed):
    found = mind(GENERATED, REFERENCE, directions=directions, seed=seed)
    expected = VALUES[f"equal_k{directions}_seed{seed}"]
    assert found == pytest.approx(expected["float64"], rel=2e-6)
    assert found == pytest.approx(expected["fd_evaluator"], rel=1e-5)


@pytest.mark.parametrize("directions, seed", [(1000, 2020), (64, 5)])
def test_the_larger_set_is_cut_by_the_same_draws(directions, seed):
    options = {"directions": directions, "seed": seed}
    found = mind(GENERATED[:FEW], REFERENCE, **options)
    assert found == pytest.approx(VALUES[f"few_generated_k{directions}_seed{seed}"]["float64"], rel=2e-6)
    found = mind(GENERATED, REFERENCE[:FEW], **options)
    assert found == pytest.approx(VALUES[f"few_reference_k{directions}_seed{seed}"]["float64"], rel=2e-6)


def test_swapped_and_equal_sets():
    assert mind(REFERENCE, GENERATED) == pytest.approx(VALUES["swapped_k1000_seed2020"], rel=2e-6)
    assert mind(REFERENCE, REFERENCE) == VALUES["self"]


def test_a_shift_is_measured_exactly():
    shifted = REFERENCE.double() + torch.from_numpy(ARRAYS["shift"])
    expected = VALUES["shifted_reference_k64_seed2020_exact"]
    # Directions are drawn and normalised in float32, which is all that is left of the difference.
    assert mind(shifted, REFERENCE.double(), directions=64) == pytest.approx(expected, rel=1e-7)


def test_blocks_do_not_change_the_value(monkeypatch):
    whole = mind(GENERATED[:FEW], REFERENCE)
    monkeypatch.setattr(module, "_VALUES", 7 * FEW)
    monkeypatch.setattr(module, "_ROWS", 11)
    assert mind(GENERATED[:FEW], REFERENCE) == pytest.approx(whole, rel=1e-12)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="0 vectors|0 and|and 0"):
        mind(GENERATED[:0], REFERENCE)
    with pytest.raises(ValueError, match="not finite"):
        mind(GENERATED / 0, REFERENCE)
    with pytest.raises(ValueError, match=r"\(320, 48\) and \(320, 47\)"):
        mind(GENERATED, REFERENCE[:, 1:])
