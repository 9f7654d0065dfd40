import math
from functools import partial

import numpy as np
import pytest
import torch

from evaluator.metrics import inception_score
from evaluator.metrics.inception_score import InceptionScore
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.parity import golden, golden_json

LOGITS, VALUES = torch.from_numpy(golden("fid_math")["logits"]), golden_json("fid_math")
N, CLASSES = LOGITS.shape


def streamed(logits: torch.Tensor = LOGITS, size: int = 64, **options: object) -> InceptionScore:
    """In batches, and in another order than stored."""
    score = InceptionScore(num_classes=logits.shape[1], **options)
    for positions in reversed(torch.arange(len(logits)).split(size)):
        score.update(logits[positions], positions)
    return score


@pytest.mark.parametrize("splits", [1, 7, 10])
@pytest.mark.parametrize(("order", "name"), [("shuffled", "shuffled"), ("stored", "in_order")])
def test_torch_fidelity(splits, order, name):
    result = streamed(splits=splits, order=order, num_images=N).result()
    expected = VALUES[f"is_torch_fidelity_splits{splits}_{name}"]
    assert list(result) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("block", [5000, 256, 100])
def test_adm(block):
    result = streamed(block=block).result()
    assert result.mean == pytest.approx(VALUES[f"adm_is_logits_in_order_split{block}"], rel=1e-5)
    result = streamed(block=block, order="shuffled", num_images=N).result()
    assert result.mean == pytest.approx(VALUES[f"adm_is_logits_shuffled_split{block}"], rel=1e-5)


def test_tokenizer_evaluator():
    expected = VALUES["one_d_tokenizer_is_first400"]
    assert streamed(LOGITS[:400]).result().mean == pytest.approx(expected, rel=1e-9)


def test_torch_fidelity_agrees_on_random_logits():
    tool = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 4 * torch.randn(101, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = tool.isc_features_to_metric(logits, splits=4, shuffle=True, rng_seed=2020)
    result = streamed(logits, splits=4, order="shuffled", num_images=101).result()
    assert list(result) == pytest.approx(list(expected.values()), rel=1e-12)


def test_extremes():
    assert streamed(torch.zeros(20, 8)).result() == pytest.approx((1.0, 0.0))
    certain = 1e4 * torch.eye(8).repeat(5, 1)  # sure of eight classes, as many of each; p underflows to zero
    assert streamed(certain).result() == pytest.approx((8.0, 0.0))
    # Sorted by class, every block knows one class only.
    assert streamed(certain.reshape(5, 8, 8).transpose(0, 1).reshape(40, 8), block=5).result().mean == 1.0


def test_large_updates_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr(inception_score, "ROWS", 7)
    parts = streamed(block=100).result()
    monkeypatch.undo()
    assert parts == pytest.approx(streamed(block=100, size=N).result(), rel=1e-12)


def test_without_positions_images_follow_one_another():
    score = InceptionScore(block=100, num_classes=CLASSES)
    for part in LOGITS.split(33):
        score.update(part)
    assert score.result() == pytest.approx(streamed(block=100).result(), rel=1e-12)


SHARED = ({"splits": 10, "order": "shuffled", "num_images": N}, {"block": 256}, {})


def _share(rank: int, expected: list[tuple[float, float]]) -> None:
    own = torch.arange(rank, N, 2)
    for options, value in zip(SHARED, expected, strict=True):
        score = InceptionScore(num_classes=CLASSES, **options)
        score.update(LOGITS[own], own)
        assert score.result() == pytest.approx(value, rel=1e-12, abs=1e-12)
    # One process may hold blocks the other never saw, or nothing.
    score = InceptionScore(block=256, num_classes=CLASSES)
    if rank:
        score.update(LOGITS, torch.arange(N))
    assert score.result() == pytest.approx(expected[1], rel=1e-12)
    with pytest.raises(ValueError, match="positions are needed"):
        score.update(LOGITS)


@needs_fork
def test_two_processes_equal_one(tmp_path):
    expected = [streamed(**options).result() for options in SHARED]
    in_two_processes(partial(_share, expected=expected), tmp_path)


def test_splits_must_be_decidable():
    for options, message in [
        ({"splits": 10}, "num_images must be known"),
        ({"order": "shuffled"}, "num_images must be known"),
        ({"splits": 2, "block": 5}, "exclude"),
        ({"splits": 0}, "at least 1"),
        ({"block": 0}, "at least 1"),
        ({"order": "random"}, "'stored' or 'shuffled'"),
        ({"splits": 10, "num_images": 9}, "cannot fill"),
    ]:
        with pytest.raises(ValueError, match=message):
            InceptionScore(**options)


def test_wrong_counts_and_values_are_refused():
    score = InceptionScore(splits=2, num_images=10, num_classes=4)
    with pytest.raises(ValueError, match="from 9 to 10"):
        score.update(torch.zeros(2, 4), torch.tensor([9, 10]))
    with pytest.raises(ValueError, match=r"\[B, 4\]"):
        score.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="3,.*2 images"):
        score.update(torch.zeros(2, 4), torch.arange(3))
    with pytest.raises(ValueError, match="not finite"):
        score.update(torch.full((1, 4), math.nan), torch.tensor([0]))
    score.update(torch.zeros(9, 4), torch.arange(9))
    with pytest.raises(ValueError, match="9 images were counted, expected 10"):
        score.result()
    with pytest.raises(ValueError, match="at least 1"):
        InceptionScore().result()


def test_empty_batches_are_no_crash():
    score = InceptionScore(block=5, num_classes=4)
    score.update(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    score.update(torch.from_numpy(np.eye(4)), torch.arange(4))
    assert score.result().mean > 1
