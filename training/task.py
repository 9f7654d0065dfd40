"""What a training task tells the engine: which modules it trains, how a step splits into phases, what to measure."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from common.build import ConfigError
from data.stream import Batch
from modeling.layers.trainable import Trainable
from training.randomness import ExampleRandom
from training.settings import OptimizerSettings

Scalars = dict[str, torch.Tensor | float]


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a phase may use besides the batch."""

    step: int  # updates already done
    modules: Mapping[str, nn.Module]  # as the engine runs them: wrapped for several processes
    raw: Mapping[str, nn.Module]  # unwrapped, for phases that do not train them: DDP would expect gradients
    random: ExampleRandom
    device: torch.device
    shared: dict[str, Any] = field(default_factory=dict)  # results for later phases of the same micro-batch


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One forward, backward and optimizer update within a step."""

    module: str  # name of the module that it updates
    loss: Callable[[Batch, StepContext], tuple[torch.Tensor, Scalars]]  # scalar loss, scalars to log
    start: int = 0  # first step in which it runs


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A preview."""

    name: str  # of its file, without ending
    image: torch.Tensor  # [3, H, W] in [0, 1]


@dataclass(frozen=True, kw_only=True)
class DecidingValue:
    """The measured value that tells which evaluation of a run is the best."""

    name: str  # as `Task.evaluate` calls it
    higher: bool = False  # whether higher values are better
    since: int = 0  # only evaluations after this step count: the run changes its aim there

    def __str__(self) -> str:
        return f"{self.name} ({'higher' if self.higher else 'lower'} is better)"

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than `best`, None being nothing; NaN is not."""
        if best is None or math.isnan(value):
            return not math.isnan(value)
        return value > best if self.higher else value < best


class Task(ABC):
    """Base of all tasks; the engine (training/trainer.py) knows nothing else about what it trains."""

    modules: dict[str, Trainable]  # what is trained, by name; `model` is exported as the result of the run
    optimizers: dict[str, OptimizerSettings]  # of every entry of `modules`
    state: dict[str, nn.Module]  # running statistics: checkpointed, not trained
    unshardable: str | None = None  # the option, if there is one, that does not work with training.sharding

    @abstractmethod
    def phases(self) -> list[Phase]:
        """Phases of a step, in order."""

    @abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure `model`, in eval mode; runs on every process."""

    @abstractmethod
    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """Pictures of what `model` does; runs on the main process only."""

    def deciding_value(self) -> DecidingValue:
        """What decides which evaluation is the best; ConfigError, with the key to change, if nothing does."""
        raise ConfigError("nothing that this task measures can decide which evaluation is the best")

    def warnings(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """Messages to show at a log line; `scalars` are the means since the last one."""
        return []
