from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from evaluator import codebook_usage
from evaluator.codebook_usage import CodebookUsage
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.parity import golden, golden_json


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


def test_stored_values():
    values, codes = golden_json("fid_math"), torch.from_numpy(golden("fid_math")["codes"])
    assert codes.dtype == torch.int16
    usage = CodebookUsage(128)
    usage.update(codes)
    measured = usage.result()
    assert measured["codebook_entropy"] == pytest.approx(values["codebook_entropy_bits_exact"], abs=1e-12)
    assert measured["codebook_perplexity"] == pytest.approx(values["codebook_perplexity"], rel=1e-12)
    assert measured["codebook_usage"] == values["codebook_used_entries"] / 128
    assert measured["codebook_usage"] == values["one_d_tokenizer_codebook_usage_128"]
    guarded = CodebookUsage(128, guard=1e-8)
    guarded.update(codes)
    expected = values["one_d_tokenizer_codebook_entropy_bits_128"]
    assert guarded.result()["codebook_entropy"] == pytest.approx(expected, abs=1e-12)
    assert guarded.result()["codebook_perplexity"] == measured["codebook_perplexity"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_large_codebooks_and_narrow_types(dtype):
    size = 2**18
    tokens = torch.tensor([[0, 1], [100, 100]], dtype=dtype)
    usage = CodebookUsage(size)
    usage.update(tokens)
    usage.update(torch.tensor([size - 1], dtype=torch.int32))
    assert usage.counts[[0, 1, 100, size - 1]].tolist() == [1, 1, 2, 1] and usage.counts.sum() == 5
    assert usage.result()["codebook_usage"] == 4 / size


def test_impossible_tokens_are_refused():
    usage = CodebookUsage(4)
    for tokens, message in [
        (torch.tensor([3, 4]), "from 3 to 4, expected 0 ... 3"),
        (torch.tensor([-1]), "from -1"),
        (torch.tensor([1.0]), "float32"),
        (torch.tensor([True]), "bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            usage.update(tokens)
    assert usage.counts.sum() == 0
    with pytest.raises(ValueError, match="codebook_size=0"):
        CodebookUsage(0)


TOKENS = torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(0))


def _share(rank: int, expected: dict[str, float]) -> None:
    own = CodebookUsage(9)
    own.update(TOKENS[:11] if rank else TOKENS[11:])
    assert own.result() == pytest.approx(expected)


@needs_fork
def test_two_processes_equal_one(tmp_path):
    in_two_processes(partial(_share, expected=measure(TOKENS, 9)), tmp_path)


def test_a_million_tokens_of_a_large_codebook_equal_a_count_by_sets():
    """2^18 codes, most of them used: as a set says, in parts of any size, without more memory than the counters."""
    size, draws = 2**18, torch.Generator().manual_seed(0)
    tokens = (torch.rand(2**20, generator=draws).square() * size).long()
    usage = CodebookUsage(size)
    for part in tokens.split([1, 256, 2**19, 2**19 - 257]):
        usage.update(part)
    counted = Counter(tokens.tolist())
    shares = np.array([*counted.values()]) / len(tokens)
    entropy = -(shares * np.log2(shares)).sum()
    measured = usage.result()
    assert (
        measured["codebook_usage"] == len(set(tokens.tolist())) / size
        and 0.3 < measured["codebook_usage"] < 1
    )
    assert measured["codebook_entropy"] == pytest.approx(entropy, abs=1e-9)
    assert usage.counts.numel() == size and usage.counts.dtype == torch.int64
