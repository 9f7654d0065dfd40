import pytest
import torch

from modeling.generators.base import drop_labels
from modeling.generators.orders import permute_tokens, randomness, sample_orders
from tests.parity import assert_close, golden


def test_randomness_equals_reference():
    expected = golden("generator_functions")
    ratios = [randomness(int(step), 125_000, 187_500) for step in expected["random_ratio_steps"]]
    assert_close(torch.tensor(ratios, dtype=torch.float64), expected["random_ratio"], atol=1e-6)


def test_randomness_at_the_edges():
    assert [randomness(s, 2, 4) for s in range(6)] == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert randomness(0, 0, 0) == 0.0
    with pytest.raises(ValueError, match="end=1"):
        randomness(0, 2, 1)


def test_orders_are_permutations_for_the_chosen_samples_only():
    generator = torch.Generator().manual_seed(0)
    uniform, noise = torch.rand(400, generator=generator), torch.rand(400, 16, generator=generator)
    orders = sample_orders(uniform, noise, 0.25)
    raster = torch.arange(16)
    assert torch.equal(orders.sort(dim=1).values, raster.expand(400, -1))
    assert torch.equal((orders != raster).any(dim=1), uniform < 0.25)
    assert torch.equal(sample_orders(uniform[7:9], noise[7:9], 0.25), orders[7:9])
    assert torch.equal(sample_orders(uniform, noise, 0.0), raster.expand(400, -1))


def test_every_place_comes_first_equally_often():
    noise = torch.rand(8000, 4, generator=torch.Generator().manual_seed(0))
    first = sample_orders(torch.zeros(8000), noise, 1.0)[:, 0]
    assert (first.bincount(minlength=4) / 8000 - 0.25).abs().max() < 0.02


def test_permute_tokens():
    tokens, orders = torch.tensor([[5, 6, 7]]), torch.tensor([[2, 0, 1]])
    assert permute_tokens(tokens, orders).tolist() == [[7, 5, 6]]
    assert permute_tokens(tokens, None) is tokens


def test_drop_labels():
    labels, uniform = torch.tensor([3, 4, 5]), torch.tensor([0.05, 0.1, 0.9])
    assert drop_labels(labels, uniform, 0.1, 10).tolist() == [10, 4, 5]
    assert drop_labels(labels, uniform, 0.0, 10).tolist() == [3, 4, 5]
    assert drop_labels(labels, uniform, 1.0, 10).tolist() == [10, 10, 10]
