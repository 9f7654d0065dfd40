"""Joining the process group of `torchrun` or `accelerate launch`, or working alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


@contextmanager
def processes() -> Iterator[torch.device]:
    """Give the device of this process; while the block runs, `common.distributed` reaches all processes.

    NCCL with GPUs, gloo without, one process when started as plain `python`.
    """
    # Without a GPU, Accelerate has to be told that the processes are meant to work together on CPUs.
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        yield state.device
    finally:
        state.destroy_process_group()
