import pytest
import torch

from evaluator import codebook_usage
from evaluator.codebook_usage import CodebookUsage


def measure(tokens: torch.Tensor, codebook_size: int) -> dict[str, float]:
    usage = CodebookUsage(codebook_size)
    usage.update(tokens)
    return usage.result()


def test_even_use_is_the_most_diverse():
    measured = measure(torch.arange(64).view(4, 2, 8), 64)
    assert measured == pytest.approx(
        {"codebook_usage": 1.0, "codebook_entropy": 6.0, "codebook_perplexity": 64.0}
    )


def test_one_code_is_the_least_diverse():
    measured = measure(torch.full((5, 3), 7), 10)
    assert measured == {"codebook_usage": 0.1, "codebook_entropy": 0.0, "codebook_perplexity": 1.0}


def test_uneven_use():
    tokens = torch.tensor([0, 0, 1, 3])  # shares 1/2, 1/4, 1/4 of five codes: 1.5 bits
    measured = measure(tokens, 5)
    assert measured == pytest.approx(
        {"codebook_usage": 0.6, "codebook_entropy": 1.5, "codebook_perplexity": 2**1.5}
    )


def test_batches_add_up():
    tokens = torch.randint(0, 50, (20, 16), generator=torch.Generator().manual_seed(0))
    usage = CodebookUsage(64)
    for part in tokens.split(3):
        usage.update(part)
    assert usage.result() == measure(tokens, 64) and usage.counts.sum() == tokens.numel()


def test_processes_add_up(monkeypatch):
    monkeypatch.setattr(codebook_usage.distributed, "all_reduce_sum", lambda counts: counts + counts.flip(0))
    assert measure(torch.tensor([0, 1, 1, 1]), 4)["codebook_usage"] == 1.0


def test_nothing_counted_is_no_crash():
    assert measure(torch.empty(0, 4, dtype=torch.int64), 4)["codebook_usage"] == 0.0
