import pytest
import torch

from evaluator.linear_probe import linear_probe
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("fdr_probe"), golden_json("fdr_probe")
SETS = [torch.from_numpy(ARRAYS[name]) for name in ("train", "train_labels", "test", "test_labels")]


@pytest.mark.parametrize("decay", [0.001, 0.1])
def test_the_exact_optimum(decay):
    found, expected = linear_probe(*SETS, decay=decay), VALUES["results"][f"lambda_{decay}"]
    assert found.train_loss == pytest.approx(expected["train_loss"], rel=1e-8)
    assert found.train_accuracy == pytest.approx(expected["train_accuracy"], rel=1e-12)
    assert found.test_accuracy == pytest.approx(expected["test_accuracy"], rel=1e-12)
    assert found.weight_norm == pytest.approx(expected["weight_norm"], rel=1e-5)


def test_scales_do_not_matter():
    features = [SETS[0] * 100 + 3, SETS[2] * 100 + 3]
    found = linear_probe(features[0], SETS[1], features[1], SETS[3], decay=0.1)
    assert found.test_accuracy == linear_probe(*SETS, decay=0.1).test_accuracy


def test_wrong_input_is_refused():
    train, train_labels, test, test_labels = SETS
    with pytest.raises(ValueError, match="decay=0"):
        linear_probe(*SETS, decay=0)
    with pytest.raises(ValueError, match="finite"):
        linear_probe(train / 0, train_labels, test, test_labels)
    with pytest.raises(ValueError, match="at least 0"):
        linear_probe(train, train_labels - 1, test, test_labels)
    with pytest.raises(ValueError, match=r"\(400, 23\)"):
        linear_probe(train, train_labels, test[:, 1:], test_labels)
