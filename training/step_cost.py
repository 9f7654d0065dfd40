"""What a micro-batch of a training step costs, found without computing it: bytes of activations, and operations.

The real task runs forward and backward on fake tensors (training/unloaded.py), which have shapes and no values. What
differs between devices is imitated on fake tensors of the CPU, so that no GPU is needed.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from data.stream import Batch
from training.randomness import ExampleRandom
from training.task import StepContext, Task

AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# What autocast computes in float32 on GPUs, but not on CPUs, among what the models use.
FLOAT32_ON_GPUS = (F.layer_norm, F.group_norm, F.softmax, torch.softmax, F.log_softmax, torch.log_softmax)
attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class StepCost:
    """Of forward and backward of one micro-batch in all phases of a step."""

    bytes: int  # most that is alive at once beside weights, gradients and the batch
    flops: int  # of matrix products, convolutions and attention; an addition and a multiplication are two

    def per_example(self, other: "StepCost", examples: int) -> float:
        """Bytes per example, from `other`, the cost of a micro-batch with `examples` more."""
        return max(1.0, (other.bytes - self.bytes) / examples)


class CostMode(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active, `now` and at `most`, and the operations.

    torch's FlopCounterMode is not used: what it holds on to keeps alive what activation checkpointing would free.

    Args:
        known: tensors from before, which may come back as results.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = self.flops = 0
        self.seen: weakref.WeakSet = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        size = storage.nbytes()
        self.seen.add(storage)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class LikeGPU(TorchFunctionMode):
    """Lets operations keep what they keep on a GPU: fused attention, and float32 where autocast says so there."""

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return fused_attention(*args, **kwargs)
        if func in FLOAT32_ON_GPUS and torch.is_autocast_enabled("cpu"):
            args = tuple(a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args)
        return func(*args, **kwargs)


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """Attention that keeps its inputs, its output and one number per query, as fused kernels of GPUs do."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (part.to(dtype) for part in (query, key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    return attention(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * query[..., 0].numel() * key.shape[2] * (query.shape[3] + value.shape[3])  # q x k, weights x v


def _backward_flops(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return (
        5 * _attention_flops(query, key, value) // 2
    )  # the weights once more, and four products of that size


FLOPS = {**flop_registry, attention: _attention_flops, attention_backward: _backward_flops}


class Autocast(nn.Module):
    """A module whose forward runs in a precision and returns float32, as in training."""

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.dtype is None:
            return self.module(*args, **kwargs)
        with torch.autocast("cpu", dtype=self.dtype):
            result = self.module(*args, **kwargs)
        return result.float() if torch.is_tensor(result) else result


def run_phases(
    task: Task, batch: Batch, positions: torch.Tensor, *, step: int, precision: str, like_gpu: bool
) -> StepCost:
    """Forward and backward of all phases that are active in a step, on fake or on real tensors of the CPU.

    Gradients are there before, as with accumulation and with several processes.
    """
    modules = {name: Autocast(module.train(), AUTOCAST[precision]) for name, module in task.modules.items()}
    random = ExampleRandom(0, positions)
    held = [*batch.values()]
    for module in (*task.modules.values(), *task.state.values()):
        held += [*module.parameters(), *module.buffers()]
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
                held.append(parameter.grad)
    context = StepContext(
        step=step, modules=modules, raw=task.modules, random=random, device=torch.device("cpu")
    )
    with CostMode(tensor for tensor in held if torch.is_tensor(tensor)) as cost:
        for phase in task.phases():
            if step >= phase.start:
                _run(phase.loss, batch, context, like_gpu)
    return StepCost(bytes=cost.most, flops=cost.flops)


def _run(loss_of: Callable, batch: Batch, context: StepContext, like_gpu: bool) -> None:
    # In a function of its own, so that the graph of a phase is gone before the next one, as in training.
    with (
        LikeGPU() if like_gpu else nullcontext()
    ):  # around backward too: checkpointed blocks compute again in it
        loss, _ = loss_of(batch, context)
        loss.backward()


def fake_batch(shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]], size: int) -> Batch:
    """A batch of `size` examples from the shapes of one."""
    return {name: torch.zeros(size, *shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
