"""What a checkpoint holds of a run, by name; the same for ordinary and sharded training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common import distributed
from storage.shards import sharded_like, whole
from training.checkpoint import CheckpointFolder
from training.sharding import is_sharded

# What an optimizer keeps of a parameter: Muon has groups of its own (training/muon.py).
MUON_STATE, ADAMW_STATE = ("momentum",), ("step", "exp_avg", "exp_avg_sq")
OptimizerState = Mapping[
    str, Mapping[str, torch.Tensor]
]  # such as {"head.weight": {"exp_avg": ..., "step": ...}}


@dataclass
class RunState:
    """The parts of a run that training changes. Sharded modules, and their optimizers, are stored as shards.

    Checkpoints of either kind continue runs of either kind, on any number of processes.
    """

    modules: dict[str, nn.Module]  # trained ones, running statistics, `ema`; without wrappers
    optimizers: dict[str, torch.optim.Optimizer]  # of the trained ones

    def save(self, checkpoints: CheckpointFolder, step: int, info: dict, scaler: Any = None) -> None:
        """Write a checkpoint, on every process; `scaler` is stored with it. Errors as `CheckpointFolder.save`."""
        states, shards, optimizers = {}, {}, {}
        for name, module in self.modules.items():
            (shards if is_sharded(module) else states)[name] = module.state_dict()
        for name, optimizer in self.optimizers.items():
            state = optimizer_state(self.modules[name], optimizer)
            if name in shards:
                shards[_stem(name)] = _flat(state)
            elif distributed.is_main():
                on_cpu = {n: {k: t.cpu() for k, t in values.items()} for n, values in state.items()}
                optimizers[name] = {"state": on_cpu}
        checkpoints.save(step, states, {"optimizers": optimizers, "scaler": scaler}, info, shards)

    def save_best(self, checkpoints: CheckpointFolder, step: int, config: dict, measured: dict) -> None:
        """Write the weights to use, averaged ones if there are any, to `best/`; calls and errors as for `save`."""
        module = self.modules.get("ema", self.modules["model"])
        states, shards = {}, {}
        (shards if is_sharded(module) else states)["model"] = module.state_dict()
        checkpoints.save_best(step, states, shards, config, measured)

    def load(self, checkpoints: CheckpointFolder, step: int) -> Any:
        """Read a checkpoint, each process its parts; returns `scaler`. Errors as `CheckpointFolder.load_module`."""
        for name, module in self.modules.items():
            checkpoints.load_module(step, name, module)
        saved = checkpoints.load_optimizers(step)
        for name, optimizer in self.optimizers.items():
            if name in saved["optimizers"]:
                state = saved["optimizers"][name].get("state", {})
                load_optimizer_state(self.modules[name], optimizer, state)
            else:
                self._load_shards(checkpoints, step, name)
        return saved["scaler"]

    def _load_shards(self, checkpoints: CheckpointFolder, step: int, name: str) -> None:
        module, optimizer = self.modules[name], self.optimizers[name]
        found = checkpoints.shard_names(step, _stem(name))
        for parameter_name, parameter, keys in _kept(module, optimizer):
            if found.issuperset(f"{key}.{parameter_name}" for key in keys):
                optimizer.state[parameter] = {key: _empty(key, parameter) for key in keys}
        checkpoints.load_shards(step, _stem(name), _flat(optimizer_state(module, optimizer)))


def _stem(module: str) -> str:
    return f"{module}.optimizer"


def _flat(state: OptimizerState) -> dict[str, torch.Tensor]:
    return {f"{key}.{name}": tensor for name, values in state.items() for key, tensor in values.items()}


def _empty(key: str, parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimizer's own tensors by the name of their parameter; empty before the first update.

    Rates, decays and betas are left out: they follow from the configuration.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {names[parameter]: dict(values) for parameter, values in optimizer.state.items()}


def load_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: OptimizerState) -> None:
    """Inverse of `optimizer_state`: copies the whole tensors, of sharded parameters its part.

    Parameters that another algorithm updated before (Muon instead of AdamW) start without a past.
    """
    for name, parameter, keys in _kept(module, optimizer):
        if name in state and set(keys) <= state[name].keys():
            optimizer.state[parameter] = {key: _own_copy(state[name][key], parameter) for key in keys}


def _kept(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter, tuple[str, ...]]]:
    """Name of every parameter that is optimized, the parameter, and what is kept of it."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter, MUON_STATE if "fused_projections" in group else ADAMW_STATE


def _own_copy(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if tensor.shape == parameter.shape:
        tensor = sharded_like(tensor, parameter)
    return tensor.to(parameter.device, copy=True)  # it may be a file, mapped into memory


def gathered_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU of the main process, empty elsewhere; call it on every process."""
    state = {}
    for name, tensor in module.state_dict().items():
        tensor = whole(tensor)  # one at a time
        if distributed.is_main():
            state[name] = tensor.cpu()
    return state
