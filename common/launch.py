"""Joining the process group of `torchrun` or `accelerate launch`, or working alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState

from common import distributed, peers


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
    distributed.watch_peers()
    yield state.device
    peers.leave()
    state.destroy_process_group()  # not after an error: it may wait for what other processes still compute
