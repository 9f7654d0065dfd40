"""torch.compile: whether it can be used on this machine, and what becomes a graph.

Only training steps are compiled. A graph is made of every `CompileUnit` of a model, blocks and levels, and never spans
two of them, so that hooks run in between: data-parallel training sends the gradients of a block while those of the
block before it are computed, and sharding gathers the weights of the next one. Units of one class and shape share
their graph.
"""

import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from common.build import ConfigError
from common.console import say
from modeling.layers.trainable import compile_units

# Of one class: a convolutional level has a graph per width and side, a discriminator one per phase.
GRAPHS = 64


def use_compile(setting: bool | Literal["auto"], device: torch.device) -> bool:
    """Whether to use torch.compile; `auto` says so when it does not.

    Raises:
        ConfigError: true is set, but the CPU backend finds no C++ compiler.
    """
    if setting is False:
        return False
    available = device.type != "cpu" or any(shutil.which(c) for c in ("g++", "clang++", "c++"))
    if not available and setting is True:
        raise ConfigError(
            "training.compile=true needs a C++ compiler (g++ or clang++) on the CPU; none was found"
        )
    if not available:
        say("no C++ compiler found: training runs without torch.compile, somewhat slower")
    return available


def compile_by_units(module: nn.Module) -> None:
    """Compile every unit of a module in place, before it is wrapped for several processes; parameter names stay."""
    import torch._dynamo  # takes a second, so not for runs without it
    import torch._functorch.config

    settings = (
        (torch._dynamo.config, "recompile_limit", GRAPHS),
        (
            torch._dynamo.config,
            "optimize_ddp",
            False,
        ),  # would split graphs at the borders of gradient buckets
        # Adaptive loss weights go backward through the discriminator twice; buffers given away are gone by then.
        (torch._functorch.config, "donated_buffer", False),
    )
    for config, name, value in settings:
        if hasattr(config, name):  # names differ between releases of PyTorch
            setattr(config, name, value)
    for unit in compile_units(module):
        # The method, not the module: hooks of data-parallel and sharded training stay outside of the graph. Shapes are
        # static: a second shape of the same class gets a graph of its own rather than a slower one for all shapes.
        unit.forward = torch.compile(unit.forward, dynamic=False)


def eagerly() -> AbstractContextManager:
    """Inside, nothing is compiled or runs compiled: evaluation has other batches, and the numbers of the scripts."""
    if "torch._dynamo" not in sys.modules or not hasattr(
        torch.compiler, "set_stance"
    ):  # PyTorch 2.5 has none
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
