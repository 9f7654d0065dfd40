"""State dicts of modules and optimizers, the same for one process, data parallel and sharded (FSDP) training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

# What an optimizer keeps of a parameter: Muon has groups of its own (training/muon.py).
MUON_STATE, ADAMW_STATE = {"momentum"}, {"step", "exp_avg", "exp_avg_sq"}


def module_state(accelerator: Accelerator, module: nn.Module) -> dict[str, torch.Tensor]:
    """Full state dict under the names of the unwrapped module; gathers shards: call it on every process."""
    return accelerator.get_state_dict(module)


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """{"state": {"head.weight": {"exp_avg": ..., "step": ...}}} on the CPU; empty before the first update.

    Rates, decays and betas are left out: they follow from the configuration.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    state = {names[p]: {k: v.cpu() for k, v in values.items()} for p, values in optimizer.state.items()}
    return {"state": state} if state else {}


def load_optimizer_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Inverse of `optimizer_state`: copies the tensors, of sharded parameters those of this process.

    Parameters that another algorithm updated before (Muon instead of AdamW) start without a past.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        wanted = MUON_STATE if "fused_projections" in group else ADAMW_STATE
        for parameter in group["params"]:
            saved = state.get("state", {}).get(names[parameter], {})
            if wanted <= saved.keys():
                optimizer.state[parameter] = {key: own_part(saved[key], parameter) for key in sorted(wanted)}


def own_part(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor on the device of a parameter; if that is sharded and of the same shape, sharded alike."""
    if isinstance(parameter, DTensor) and whole.shape == parameter.shape:
        # Every process has the whole and cuts out its part: nothing is sent.
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return whole.to(parameter.device, copy=True)  # `whole` may be a file, mapped into memory


@contextmanager
def whole_parameters(module: nn.Module) -> Iterator[None]:
    """Gather the parameters of a sharded (FSDP2) module for the block, so that methods beside `forward` can use them.

    Every process has to enter; does nothing for modules that are not sharded.
    """
    shards = [m for m in module.modules() if isinstance(m, FSDPModule)]
    for shard in shards:
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()
