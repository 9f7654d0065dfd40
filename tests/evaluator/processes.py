"""Runs a function in two processes that form a group, as tests of reductions need it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="starting interpreters takes seconds"
)


def _join(rank: int, store: str, work: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    work(rank)
    torch.distributed.destroy_process_group()


def in_two_processes(work: Callable[[int], None], folder: Path) -> None:
    """Call `work(rank)` in two processes; an assertion that fails in one of them fails here."""
    arguments = (str(folder / "store"), work)
    multiprocessing.start_processes(_join, arguments, nprocs=2, start_method="fork")
