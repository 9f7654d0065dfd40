"""Trains in several processes that form a group, without starting an interpreter for each of them."""

import os
import socket
from collections.abc import Callable, Sequence

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import multiprocessing

from common.config import load_settings
from training import trainer

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="starting interpreters takes seconds"
)
Run = tuple[Callable, type, Sequence[str]]  # a program, its settings and its arguments


def _train(rank: int, runs: Sequence[Run], environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    trainer.draw_curves = lambda folders, output: False  # takes longer than a training
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for program, settings, arguments in runs:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        program(load_settings(settings, list(arguments)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train_together(count: int, runs: Sequence[Run], per_node: int | None = None) -> None:
    """Train runs one after the other, each in the same `count` processes; what fails in one of them fails here.

    `per_node` processes believe to be on one node.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    environment["LOCAL_WORLD_SIZE"] = str(per_node or count)
    multiprocessing.start_processes(_train, (runs, environment), nprocs=count, start_method="fork")
