"""Process group questions and collectives that do nothing in a single process.

Models that gather statistics (codebook usage, online clustering) and evaluators call these functions, so that
one process and many give the same result and nobody else needs to know whether a process group exists.
"""

import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

HEARTBEAT = 30.0  # seconds; process groups give up on a silent member after minutes


def is_active() -> bool:
    """True when more than one process works together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Index of this process, 0 ... world_size() - 1."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Number of processes that work together, 1 without a process group."""
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has arrived."""
    if is_active():
        dist.barrier()


@torch.no_grad()
def all_gather_cat(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate equally shaped tensors of all processes along dimension 0, in rank order, without gradient.

    Args:
        tensor: [N, ...], the same shape on every process.

    Returns:
        [world_size * N, ...]; the detached input itself in a single process.
    """
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
    """The picklable `value` of every process, in rank order (process-group traffic, never files)."""
    if not is_active():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(work: Callable[[], None]) -> None:
    """Do something on the main process while the others wait, however long it takes.

    Raises:
        Exception: what `work` raises; a ValueError with the same message on the other processes.
    """
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
    while working:
        # A barrier would time out before long work is done; so the processes meet again and again.
        if is_main():
            thread.join(HEARTBEAT)
        busy = thread.is_alive()
        working, message = gather_objects((busy, str(errors[0]) if errors else None))[0]
    if errors:
        raise errors[0]
    if message is not None:
        raise ValueError(message)
