"""Sharded training (FSDP2): of every parameter, its moments and its average, a process holds a part of the rows.

The transformer blocks of the model are gathered one by one where they compute, forward and backward; everything outside
of them is one more part. Only the model is sharded: a discriminator is small and trains data-parallel beside it.
"""

import copy
import os
import warnings
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import register_dataclass

from common import distributed
from common.build import ConfigError
from common.console import say
from modeling.layers.trainable import blocks, replicated
from modeling.tokenizers.base import TokenizerOutput
from storage.shards import whole
from training.settings import TrainingSettings
from training.task import Task

# Where gradients enter a module, FSDP acts; it looks for tensors in the kinds of outputs that it knows.
register_dataclass(TokenizerOutput)


def use_sharding(training: TrainingSettings, task: Task) -> bool:
    """Whether to shard the model; a single process has nothing to share, and says so.

    Raises:
        ConfigError: something else in the run does not work with it.
    """
    if training.sharding == "none":
        return False
    key = f"training.sharding={training.sharding}"
    if task.unshardable is not None:
        raise ConfigError(f"{key} does not work with {task.unshardable}; use none")
    if training.mixed_precision == "fp16":
        raise ConfigError(f"training.mixed_precision=fp16 does not work with {key}; use bf16")
    if not distributed.is_active():
        say(f"{key} has no effect on one process")
        return False
    return True


class ShardedModel:
    """A model that is sharded in place, and how to make ordinary modules of it.

    `skeleton` is a copy without parameters. Evaluation, previews and averages use it: methods other than `forward`,
    such as `encode`, would not gather what they need, and would compute in the precision of the gathered parameters.

    Args:
        module: on the CPU, the same on every process; afterwards its parts are on `device`.
        training: how it is sharded, and with which precision.
    """

    def __init__(self, module: nn.Module, training: TrainingSettings, device: torch.device) -> None:
        empty = {id(p): _meta(p) for p in module.parameters()}
        buffers = {id(b): b.to(device, copy=True) for b in module.buffers()}
        self.skeleton = copy.deepcopy(module, {**empty, **buffers}).eval()
        dtype = torch.bfloat16 if training.mixed_precision == "bf16" else None
        _shard(module, _mesh(training.sharding, device), device, dtype)

    def with_tensors(self, state: Mapping[str, torch.Tensor]) -> nn.Module:
        """An ordinary module in eval mode that has these tensors; they are not copied."""
        module = copy.deepcopy(self.skeleton)
        module.load_state_dict(state, assign=True)
        return module

    def whole(self, module: nn.Module) -> nn.Module:
        """An ordinary module with all of the parameters of `module`, gathered for now: call it on every process."""
        return self.with_tensors({name: whole(tensor) for name, tensor in module.state_dict().items()})


def is_sharded(module: nn.Module) -> bool:
    """Whether a module holds only its part of a parameter."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def _meta(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)


def _mesh(setting: str, device: torch.device) -> DeviceMesh:
    """All processes in a row, or for `hybrid` a row per node: sharded along it, replicated across."""
    count = distributed.world_size()
    if setting == "full":
        return init_device_mesh(device.type, (count,))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not 1 < here < count or count % here:
        raise ConfigError(
            f"training.sharding=hybrid shards within nodes and needs several nodes of several processes each; found"
            f" {count} processes, {here} of them on this node; use full"
        )
    return init_device_mesh(device.type, (count // here, here), mesh_dim_names=("nodes", "processes"))


def _shard(module: nn.Module, mesh: DeviceMesh, device: torch.device, dtype: torch.dtype | None) -> None:
    # Codebooks, which are small: 262,144 codes of 256 numbers are 0.3 GB.
    for part in replicated(module):
        part.to(device)
    ignored = [parameter for part in replicated(module) for parameter in part.parameters()]
    # Under autocast, products round their inputs to this type anyway, so gathering them rounded halves the traffic.
    # What autocast leaves in float32, such as the sum of a block and its input, stays so: inputs are not cast.
    # FSDP warns of outputs that are views, because changing one in place would go wrong; losses change no output.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in reversed(blocks(module)):  # inner ones first
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Embeddings, norms and heads are gathered as they are: autocast decides what is rounded.
    fully_shard(module, mesh=mesh, ignored_params=set(ignored))
    for tensor in (*ignored, *module.buffers()):
        if distributed.is_active():
            torch.distributed.broadcast(tensor.detach(), src=0)  # as DDP does: machines may round differently
    for parameter in ignored:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)


def _average_gradient(parameter: nn.Parameter) -> None:
    # In every micro-batch: what was averaged before is the same everywhere, and stays.
    parameter.grad.copy_(distributed.all_reduce_mean(parameter.grad))
