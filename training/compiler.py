"""Whether torch.compile can be used on this machine."""

import shutil
from typing import Literal

import torch

from common.build import ConfigError
from common.console import say


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
