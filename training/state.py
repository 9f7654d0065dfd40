"""State dicts of modules and optimizers, the same for one process, data parallel and sharded (FSDP) training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule


def module_state(accelerator: Accelerator, module: nn.Module) -> dict[str, torch.Tensor]:
    """Full state dict under the names of the unwrapped module; gathers shards: call it on every process."""
    return accelerator.get_state_dict(module)


def optimizer_state(module: nn.Module, optimizer: Any) -> dict:
    """Full optimizer state by parameter name, on the CPU; empty before the first update. Call it on every process."""
    # Asked for an empty state, torch makes one by an update with zero gradients, which then counts as a step.
    if not optimizer.optimizer.state:
        return {}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(module, optimizer.optimizer, options=options)


def load_optimizer_state(module: nn.Module, optimizer: Any, state: dict) -> None:
    """Inverse of `optimizer_state`, on any number of processes."""
    if not state:
        return
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(module, optimizer.optimizer, state, options=options)


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
