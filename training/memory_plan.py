"""Memory and time of a training run on paper: what a process holds, what a step costs, and on which GPU it fits."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from modeling.layers.trainable import blocks, replicated
from training.gpus import GPU
from training.optim import parameter_groups
from training.step_cost import StepCost, fake_batch, run_phases
from training.unloaded import Run, unloaded

Sharding = Literal["none", "full", "hybrid"]
GPUS_PER_NODE = 8


# Of a GPU's memory: the context of the driver and the buffers of NCCL; and what fragmentation wastes.
RESERVED, WASTED = 2e9, 0.05


@dataclass(frozen=True)
class Held:
    """Bytes that a process holds from the first step to the last."""

    parameters: int  # of all trained modules, with buffers
    gradients: int
    optimizer: int
    average: int
    frozen: int  # teachers, perceptual networks, tokenizers
    gathered: int = 0  # of sharded training: whole parameters of the blocks at work

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.average + self.frozen + self.gathered


def sizes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def optimizer_bytes(module: nn.Module, settings: object) -> int:
    """Bytes of the moments of a module's optimizer: two numbers per parameter, with Muon one."""
    return sum(
        p.numel() * p.element_size() * (1 if "fused_projections" in group else 2)
        for group in parameter_groups(module, settings)
        for p in group["params"]
    )


class Plan:
    """What a run (lengths in steps) costs per process; costs of steps are measured on fake tensors when asked for.

    Args:
        run: `training.per_gpu_batch_size` and `gradient_accumulation_steps` are those of one of `processes`.
        like_gpu: operations keep what they keep on a GPU; False imitates a CPU.

    Raises:
        ConfigError: as `unloaded`.
    """

    def __init__(
        self,
        run: Run,
        *,
        processes: int = 1,
        sharding: Sharding = "none",
        like_gpu: bool = True,
    ) -> None:
        self.run, self.processes, self.sharding, self.like_gpu = run, processes, sharding, like_gpu
        self.unloaded = unloaded(run)
        self.costs: dict[int, StepCost] = {}
        task = self.unloaded.task
        self.parameters = {n: sum(p.numel() for p in m.parameters()) for n, m in task.modules.items()}
        self.buffers = sum(map(sizes, task.state.values()))
        self.optimizers = {n: optimizer_bytes(m, task.optimizers[n]) for n, m in task.modules.items()}

    def spread(self, processes: int, sharding: Sharding) -> "Plan":
        """The same run on other processes; what was measured is used again."""
        other = copy.copy(self)
        other.__dict__.pop("held", None)
        other.processes, other.sharding = processes, sharding
        return other

    @property
    def shards(self) -> int:
        """Processes that share what is sharded."""
        if self.sharding == "hybrid":
            return min(self.processes, GPUS_PER_NODE)
        return self.processes if self.sharding == "full" else 1

    @cached_property
    def held(self) -> Held:
        """Bytes per process beside activations."""
        modules, shards = dict(self.unloaded.task.modules), self.shards
        model = modules.pop("model")
        whole = sum(sizes(m) for m in (*modules.values(),)) + self.buffers
        kept = sum(map(sizes, replicated(model)))
        own, trained = sizes(model) - kept, _trainable(model)
        return Held(
            parameters=whole + kept + own // shards,
            gradients=sum(map(_trainable, modules.values())) + trained // shards,
            optimizer=sum(self.optimizers[n] for n in modules) + self.optimizers["model"] // shards,
            average=0 if self.run.training.ema_decay is None else kept + own // shards,
            frozen=sum(map(sizes, self.unloaded.frozen.values())),
            gathered=self._gathered(model) if shards > 1 else 0,
        )

    def _gathered(self, model: nn.Module) -> int:
        """Whole parameters at once: two blocks (one at work, one on its way), and everything outside of blocks."""
        found = [sizes(block) for block in blocks(model)]
        width = 2 if self.run.training.mixed_precision == "bf16" else 4
        outside = sizes(model) - sum(found)
        return outside + sum(sorted(found)[-2:]) * width // 4

    def cost(self, batch: int) -> StepCost:
        """Of one micro-batch of `batch` examples in the last step of the run, when everything is switched on."""
        if batch not in self.costs:
            task, positions = self.unloaded, torch.arange(batch)
            with task.mode:
                self.costs[batch] = run_phases(
                    task.task,
                    fake_batch(task.shapes, batch),
                    positions,
                    step=self.run.training.max_steps - 1,
                    precision=self.run.training.mixed_precision,
                    like_gpu=self.like_gpu,
                )
        return self.costs[batch]

    def activations(self, batch: int) -> float:
        """Bytes of a micro-batch, along a line through those of 2 and 4 examples; the batch itself included."""
        small, large = self.cost(2), self.cost(4)
        own = sum(t.numel() * t.element_size() for t in fake_sizes(self.unloaded.shapes))
        return small.bytes - self._unsaved() + (batch - 2) * small.per_example(large, 2) + batch * own

    def _unsaved(self) -> int:
        """Bytes of rounded weights that autocast keeps for backward; sharded ones are gathered again instead."""
        if self.shards == 1 or self.run.training.mixed_precision == "no":
            return 0
        return sum(map(sizes, blocks(self.unloaded.task.modules["model"]))) // 2

    def flops(self, batch: int) -> float:
        """Operations of a micro-batch."""
        small, large = self.cost(2).flops, self.cost(4).flops
        return small + (batch - 2) * (large - small) / 2

    def total(self, batch: int) -> float:
        """Bytes of a process with a micro-batch."""
        return self.held.total + self.activations(batch)

    def largest_batch(self, memory: float) -> int:
        """The largest micro-batch for which `total` is within `memory` bytes; 0 if there is none."""
        one = self.activations(3) - self.activations(2)
        return max(0, int((memory - self.held.total - self.activations(0)) / one))

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: weights, average, moments and statistics, whole."""
        modules = self.unloaded.task.modules
        average = 0 if self.run.training.ema_decay is None else sizes(modules["model"])
        return sum(map(sizes, modules.values())) + self.buffers + average + sum(self.optimizers.values())


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def fake_sizes(shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> list[torch.Tensor]:
    """Tensors of the shapes of one example, without values."""
    return [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in shapes.values()]


def usable(gpu: GPU) -> float:
    """Bytes of a GPU for tensors."""
    return (gpu.memory - RESERVED) / (1 + WASTED)
