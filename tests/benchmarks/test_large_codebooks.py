"""The two ways that `benchmarks/large_codebooks.py` compares compute the same thing."""

import argparse

import pytest
import torch

from benchmarks import large_codebooks
from benchmarks.large_codebooks import WAYS, compare, inputs


@pytest.mark.parametrize(("kind", "size"), [("lfq", 7), ("ibq", 40)])
def test_both_ways_give_the_same_value_and_gradients(kind, size, monkeypatch):
    monkeypatch.setattr(large_codebooks, "CHUNK", 100)
    tensors = inputs(kind, 9, size, "cpu")
    (ours, ours_grads), (dense, dense_grads) = (
        (value.detach(), torch.autograd.grad(value, tensors))
        for value in (way(*tensors) for way in WAYS[kind])
    )
    assert ours.abs() > 0.01
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)
    for first, second in zip(ours_grads, dense_grads, strict=True):
        assert second.abs().max() > 1e-4
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_line_of_the_table():
    settings = argparse.Namespace(device="cpu", threads=1, repeats=1, limit=100)
    line = compare("lfq", 16, 8, settings)
    assert "256 codes" in line and "x time" in line and float(line.rpartition(" ")[2]) < 1e-4
    settings.limit = 0.01
    assert line.partition("MB")[0].split()[:4] == compare("lfq", 16, 8, settings).split()[:4]
    assert "not run" in compare("lfq", 16, 8, settings)
