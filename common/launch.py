"""Joining the process group of `torchrun` or `accelerate launch`, or working alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState

from common import distributed, peers
from common.build import ConfigError


def require_joined(num_processes: int) -> None:
    """Raise ConfigError if this process works alone, while its launcher was asked for several."""
    if num_processes > 1:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE is above 1, but the processes are not joined; start them with torchrun")
    # Set by Accelerate only: the first always, the second if several processes or machines were asked for.
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys():
        raise ConfigError(
            "accelerate launch has started a single process, which would work alone: on CPUs it starts no others;"
            " use torchrun, or accelerate launch --multi_gpu, neither of which needs a GPU"
        )


@contextmanager
def processes() -> Iterator[torch.device]:
    """Give the device of this process; while the block runs, `common.distributed` reaches all processes.

    NCCL with GPUs, gloo without, one process when started as plain `python`.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Shares of files differ in the time that they take, and the first to be done waits for the last.
    waiting = {"timeout": distributed.LONGEST_WAIT} if several else {}
    # Without `cpu`, Accelerate starts no gloo group.
    state = PartialState(cpu=not torch.cuda.is_available(), **waiting)
    require_joined(state.num_processes)
    distributed.watch_peers()
    yield state.device
    peers.leave()
    state.destroy_process_group()  # not after an error: it may wait for what other processes still compute
