"""Process group questions and collectives that do nothing in a single process.

Code that calls them gives the same result on one process and many, and need not know whether a process group exists.
"""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from common import peers

Value = TypeVar("Value")

HEARTBEAT = 30.0  # seconds, far below the time-out of a process group


def is_active() -> bool:
    """True when several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Index of this process, 0 ... world_size() - 1."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Number of processes that work together; 1 without a process group."""
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0


def watch_peers() -> None:
    """Let all processes end when one fails; every process calls it once they are joined."""
    if is_active():
        peers.watch(rank(), gather_objects)


def barrier() -> None:
    """Wait until every process has arrived."""
    if is_active():
        dist.barrier()


@torch.no_grad()
def all_gather_cat(tensor: torch.Tensor) -> torch.Tensor:
    """Equally shaped tensors [N, ...] of all processes as [world_size * N, ...], in rank order, without gradient."""
    if not is_active():
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes, as a new tensor without gradient."""
    result = tensor.detach().clone()
    if is_active():
        dist.all_reduce(result)
    return result


@torch.no_grad()
def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of a floating-point tensor over all processes, as a new tensor without gradient."""
    return all_reduce_sum(tensor) / world_size()


def gather_objects(value: object) -> list:
    """The picklable `value` of every process, in rank order."""
    if not is_active():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def local_rank() -> int:
    """Index of this process on its node, as its launcher says; 0 of a single process."""
    return int(os.environ.get("LOCAL_RANK", 0)) if is_active() else 0


def on_main(work: Callable[[], None]) -> None:
    """Do something on the main process while the others wait; its error is a ValueError on the other processes."""
    if is_active():
        _while_others_wait(work if is_main() else None)
    else:
        work()


def from_main(work: Callable[[], Value]) -> Value:
    """What `work` returns on the main process, on every process; waits and raises like `on_main`.

    The value is pickled.
    """
    if not is_active():
        return work()
    value = _while_others_wait(work if is_main() else None)
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_local_main(work: Callable[[], Value]) -> Value:
    """What `work` returns on the first process of this node, for all processes of the node; raises like `on_main`.

    The value is pickled and reaches all nodes: a path, or what is as short.
    """
    if not is_active():
        return work()
    mine = local_rank() == 0
    value = _while_others_wait(work if mine else None)
    everyone = gather_objects((mine, value))
    # Launchers number processes node by node.
    return next(value for first, value in reversed(everyone[: rank() + 1]) if first)


def _while_others_wait(work: Callable[[], Value] | None) -> Value | None:
    """Do `work`, where it is not None, until all processes have done theirs."""
    values: list[Value] = []
    errors: list[Exception] = []

    def guarded() -> None:
        try:
            values.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    if work is not None:
        thread.start()
    working = True
    while working:  # a barrier would time out during long work, so the processes meet at every heartbeat
        if work is not None:
            thread.join(HEARTBEAT)
        busy = thread.is_alive()
        states = gather_objects((busy, str(errors[0]) if errors else None))
        working = any(busy for busy, _ in states)
    if errors:
        raise errors[0]
    message = next((message for _, message in states if message is not None), None)
    if message is not None:
        raise ValueError(message)
    return values[0] if values else None
