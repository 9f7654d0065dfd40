"""Optimizer states survive a checkpoint: the next updates are those of the run that was not stopped."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from modeling.layers.trainable import Block, Trainable
from training.checkpoint import CheckpointFolder
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
    return model, build_optimizer(model, settings)


def update(model, optimizer, steps):
    for step in steps:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


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
    names = set(state["blocks.0.linear.weight"])
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


@pytest.mark.parametrize(("before", "after"), [(None, 0.02), (0.02, None)])
def test_another_algorithm_starts_without_a_past(before, after):
    torch.manual_seed(0)
    model, optimizer = make(before)
    update(model, optimizer, range(2))
    state = optimizer_state(model, optimizer)
    optimizer = build_optimizer(model, OptimizerSettings(muon_learning_rate=after))
    load_optimizer_state(model, optimizer, state)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in optimizer.state} == {
        n for n in names.values() if n != "blocks.0.linear.weight"
    } - {"blocks.1.linear.weight"}
    update(model, optimizer, range(2, 4))


def private_memory() -> int:
    """Bytes of this process that it shares with no other: not those of files mapped into memory."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("only Linux tells how much memory of a process is its own")
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text())[1])


def test_a_process_holds_only_what_it_keeps_of_a_file_of_states(tmp_path):
    """The processes of a node read one file, of 96 GB together before for the largest generator."""
    model, size = nn.Linear(2048, 2048, bias=False), 4 * 2048 * 2048
    state = {
        "head": {"state": {"weight": {key: torch.ones(2048, 2048) for key in ("exp_avg", "exp_avg_sq")}}}
    }
    state["others"] = {"state": {f"{i}": {"exp_avg": torch.ones(2048, 2048)} for i in range(6)}}
    state["head"]["state"]["weight"]["step"] = torch.ones(())
    checkpoints = CheckpointFolder(tmp_path, keep=1)
    checkpoints.save(1, {}, state, {"config": {}})
    del state
    optimizer = torch.optim.AdamW(model.parameters())
    before = private_memory()
    saved = checkpoints.load_optimizers(1)
    assert private_memory() - before < size  # of eight
    load_optimizer_state(model, optimizer, saved["head"]["state"])
    assert private_memory() - before < 3 * size
    saved["head"]["state"]["weight"]["exp_avg"].zero_()  # what is kept is a copy, which outlives the file
    assert optimizer.state[model.weight]["exp_avg"].eq(1).all()
