"""Optimizer states survive a checkpoint: the next updates are those of the run that was not stopped."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling.layers.trainable import Block, Trainable
from training.optim import build_optimizer
from training.settings import OptimizerSettings
from training.state import load_optimizer_state, optimizer_state


class Layer(Block):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.linear(x)


class Model(Trainable):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Layer(4, 6), Layer(6, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](x).tanh()))


def make(muon_learning_rate):
    settings = OptimizerSettings(learning_rate=0.01, muon_learning_rate=muon_learning_rate)
    model = Model()
    return model, SimpleNamespace(optimizer=build_optimizer(model, settings))


def update(model, prepared, steps):
    for step in steps:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        prepared.optimizer.step()
        prepared.optimizer.zero_grad()


@pytest.mark.parametrize("muon_learning_rate", [None, 0.02])
@pytest.mark.parametrize("stop_at", [0, 3])
def test_a_stored_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, muon_learning_rate, stop_at):
    torch.manual_seed(0)
    whole, optimizer = make(muon_learning_rate)
    update(whole, optimizer, range(stop_at))
    torch.save([whole.state_dict(), optimizer_state(whole, optimizer)], tmp_path / "state.pt")
    update(whole, optimizer, range(stop_at, 6))
    resumed, other = make(muon_learning_rate)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(weights)
    load_optimizer_state(resumed, other, state)
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.state_dict().items())
    update(resumed, other, range(stop_at, 6))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_muon_goes_on_after_three_stops_in_a_row(tmp_path):
    torch.manual_seed(0)
    whole, optimizer = make(0.02)
    weights, state = {k: v.clone() for k, v in whole.state_dict().items()}, {}
    update(whole, optimizer, range(8))
    for start in range(0, 8, 2):
        resumed, other = make(0.02)
        resumed.load_state_dict(weights)
        load_optimizer_state(resumed, other, state)
        update(resumed, other, range(start, start + 2))
        torch.save([resumed.state_dict(), optimizer_state(resumed, other)], tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    names = set(state["state"]["blocks.0.linear.weight"])
    assert names == {"momentum"}
    for name, tensor in whole.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_looking_at_a_state_does_not_change_the_run():
    torch.manual_seed(0)
    one, optimizer = make(None)
    torch.manual_seed(0)
    two, other = make(None)
    for _ in range(3):  # saved before the first update, as of a discriminator that starts late
        assert optimizer_state(one, optimizer) == {}
    update(one, optimizer, range(3))
    update(two, other, range(3))
    for name, tensor in two.state_dict().items():
        assert torch.equal(one.state_dict()[name], tensor), name
