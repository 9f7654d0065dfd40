"""Process group questions and collectives that do nothing in a single process.

Code that calls them gives the same result on one process and many, and need not know whether a process group exists.
"""

import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from common import peers
from common.ranks import is_active, is_main, rank, world_size

LONGEST_WAIT = timedelta(days=1)  # for one process that works while the others wait
Value = TypeVar("Value")
_side: tuple[object, dist.ProcessGroup] | None = None  # see `side_group`


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


def side_group() -> dist.ProcessGroup:
    """A gloo group of all processes for facts, apart from the tensors of the model; every process calls it in turn.

    Its time-out is a day: it is there for waits whose end nobody knows. `common.peers` ends the wait for the dead.
    """
    global _side
    if _side is None or _side[0] is not dist.group.WORLD:  # the process group may be another one
        _side = (dist.group.WORLD, dist.new_group(backend="gloo", timeout=LONGEST_WAIT))
    return _side[1]


def on_main(work: Callable[[], Value]) -> Value:
    """Do something on the main process while the others wait, however long it takes.

    Returns its value on every process, and raises its error there; both are pickled.
    """
    if not is_active():
        return work()
    outcome = list(_outcome(is_main(), work))
    own = outcome[1]
    outcome[1] = _picklable(own)
    dist.broadcast_object_list(outcome, group=side_group())
    if error := own or outcome[1]:  # its own with the traceback
        raise error
    return outcome[0]


def on_local_main(work: Callable[[], Value]) -> Value:
    """As `on_main`, on the first process of every node, whose processes get its value; an error is raised on all nodes.

    The value reaches all nodes: a path, or what is as short.
    """
    if not is_active():
        return work()
    everyone = _done_by(local_rank() == 0, lambda: (work(),))
    # Launchers number processes node by node.
    return next(value for (value,) in reversed(list(filter(None, everyone[: rank() + 1]))))


def _done_by(mine: bool, work: Callable[[], Value]) -> list[Value | None]:
    """Values of all processes of which this one works if it is `mine`; None of the others."""
    value, error = _outcome(mine, work)
    outcomes: list = [None] * world_size()
    dist.all_gather_object(outcomes, (value, _picklable(error)), group=side_group())
    for found in (error, *(error for _, error in outcomes)):  # its own first, with the traceback
        if found is not None:
            raise found
    return [value for value, _ in outcomes]


def _outcome(mine: bool, work: Callable[[], Value]) -> tuple[Value | None, Exception | None]:
    try:
        return (work() if mine else None), None
    except Exception as error:
        return None, error


def _picklable(error: Exception | None) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))  # an error with keywords of its own cannot be made anew
    except Exception:
        return ValueError(str(error))
    return error
