"""State dicts of modules and optimizers, the same for one process, data parallel and sharded (FSDP) training."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)


def module_state(accelerator: Accelerator, module: nn.Module) -> dict[str, torch.Tensor]:
    """Full state dict under the names of the unwrapped module; shards are gathered, so call it on every process."""
    return accelerator.get_state_dict(module)


def optimizer_state(module: nn.Module, optimizer: Any) -> dict:
    """Full optimizer state keyed by parameter names, on the CPU; call it on every process."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(module, optimizer.optimizer, options=options)


def load_optimizer_state(module: nn.Module, optimizer: Any, state: dict) -> None:
    """Inverse of `optimizer_state`, on any number of processes."""
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(module, optimizer.optimizer, state, options=options)
