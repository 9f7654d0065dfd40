"""What a training task tells the engine: which modules it trains, how a step splits into phases, what to measure."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from training.randomness import ExampleRandom
from training.settings import OptimizerSettings

Batch = dict[str, Any]
Scalars = dict[str, torch.Tensor | float]


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a phase may use besides the batch.

    Attributes:
        step: updates already done (0 for the first).
        modules: the trained modules as the engine runs them (wrapped for several processes).
        raw: the same modules unwrapped, for use in phases that do not train them.
        random: per-example random numbers.
        shared: results that later phases of the same micro-batch reuse.
        device: where tensors live.
    """

    step: int
    modules: Mapping[str, nn.Module]
    raw: Mapping[str, nn.Module]
    random: ExampleRandom
    device: torch.device
    shared: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One forward, backward and optimizer update within a step.

    Attributes:
        module: name of the module that this phase updates.
        loss: (batch, context) -> (scalar loss, scalars to log).
        start: first step in which the phase runs.
    """

    module: str
    loss: Callable[[Batch, StepContext], tuple[torch.Tensor, Scalars]]
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for people: [3, H, W] in [0, 1] and the file name it gets."""

    name: str
    image: torch.Tensor


class Task(ABC):
    """Base of all tasks; the engine (training/trainer.py) knows nothing else about what it trains.

    Attributes:
        modules: trained modules by name; `model` is the one exported as the result of the run.
        optimizers: optimizer settings for every entry of `modules`.
        state: further modules that are not trained but belong to the run (running statistics); checkpointed.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, OptimizerSettings]
    state: dict[str, nn.Module]

    @abstractmethod
    def phases(self) -> list[Phase]:
        """The phases of a step, in order."""

    @abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure `model` (eval mode, averaged weights if there are any); called on every process."""

    @abstractmethod
    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """Pictures of what `model` does; called on the main process only."""

    def warnings(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """What people should know now, given the window's mean scalars; asked at every log line."""
        return []
