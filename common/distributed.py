"""Process group questions and collectives that do nothing in a single process.

Code that calls them gives the same result on one process and many, and need not know whether a process group exists.
"""

import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

from common import peers

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


def on_main(work: Callable[[], None]) -> None:
    """Do something on the main process while the others wait; its error is a ValueError on the other processes."""
    if not is_active():
        return work()
    errors: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    if is_main():
        thread.start()
    working = True
    while working:  # a barrier would time out during long work, so the processes meet at every heartbeat
        if is_main():
            thread.join(HEARTBEAT)
        busy = thread.is_alive()
        working, message = gather_objects((busy, str(errors[0]) if errors else None))[0]
    if errors:
        raise errors[0]
    if message is not None:
        raise ValueError(message)
