import pytest
import torch
from torch import nn

from modeling.layers import trainable
from training.muon import MuonAdamW, orthogonalize
from training.optim import build_optimizer
from training.settings import OptimizerSettings


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (3, 16, 4)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    values = torch.linalg.svdvals(result)
    assert result.shape == matrices.shape
    assert values.min() > 0.3 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    exact = u @ v
    cosine = (result * exact).sum(dim=(-2, -1)) / (result.norm(dim=(-2, -1)) * exact.norm(dim=(-2, -1)))
    assert cosine.min() > 0.97


def assert_size(matrix, size):
    """All but the smallest singular values, which the iteration does not lift all the way, are about `size`."""
    values = torch.linalg.svdvals(matrix)
    assert values[:-2].tolist() == pytest.approx([size] * (len(values) - 2), rel=0.35)
    assert values.max() < 1.3 * size


class Block(trainable.Block):
    stacked = {"in_proj_weight": 3}

    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(24, 8))
        self.fc = nn.Linear(8, 16)


class Model(trainable.Trainable):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.transformer = nn.ModuleList([Block()])


def test_only_matrices_of_blocks_are_trained_by_muon():
    torch.manual_seed(0)
    model = Model()
    settings = OptimizerSettings(learning_rate=0.01, muon_learning_rate=0.1, weight_decay=0.0)
    optimizer = build_optimizer(model, settings)
    assert isinstance(optimizer, MuonAdamW)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["ratio"]
    optimizer.step()
    block = model.transformer[0]
    # Each of the three stacked projections moves by an orthogonal matrix of its own; a tall one by a larger one.
    for part in (block.in_proj_weight - before["transformer.0.in_proj_weight"]).detach().chunk(3):
        assert_size(part, 0.1)
    step = (block.fc.weight - before["transformer.0.fc.weight"]).detach()
    assert_size(step, 0.1 * 2**0.5)
    # The first step of Adam has the size of the learning rate everywhere.
    for name in ("embed.weight", "embed.bias", "transformer.0.fc.bias"):
        step = (dict(model.named_parameters())[name] - before[name]).detach().abs()
        torch.testing.assert_close(step, torch.full_like(step, 0.01), rtol=1e-3, atol=0)
    assert all(p.grad is not None for p in model.parameters())


def test_without_muon_it_is_plain_adamw():
    assert type(build_optimizer(Model(), OptimizerSettings())) is torch.optim.AdamW
