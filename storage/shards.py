"""Tensors that several processes write together: a folder of safetensors files, one per process.

`torch.distributed.checkpoint` with its safetensors storage. Its default storage keeps an index, `.metadata`, that can
be read by unpickling only, which runs code of whoever wrote the file. Here the header of every file says which part of
which tensor it holds, so that any number of processes reads the folder, each its own parts.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

from common import distributed


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors into a new folder; every process gives the same names, and of sharded tensors its part.

    Raises:
        OSError: a process, not necessarily this one, cannot write; raised on all of them.
    """
    try:
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        group = distributed.side_group() if distributed.is_active() else None  # a disk may take its time
        checkpoint.save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise OSError(_reason(error)) from error


def read_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read tensors in place; of sharded ones their local part. A process reads alone, whatever the others do.

    Raises:
        OSError, ValueError: an entry is missing, has another shape, or a file is damaged.
    """
    with _alone():
        try:
            reader = checkpoint.HuggingFaceStorageReader(str(folder))
            checkpoint.load(dict(tensors), storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise ValueError(_reason(error)) from error


def shard_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shapes of the whole tensors in a folder of shards.

    Raises:
        OSError, SafetensorError, ValueError: a file is missing or damaged.
    """
    entries = checkpoint.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, entry in entries.items():
        held = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if held != math.prod(entry.size):
            raise ValueError(
                f"{held} of {math.prod(entry.size)} numbers of {name!r} found: a file is missing"
            )
    return {name: entry.size for name, entry in entries.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; gathers a sharded one, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds, in the same memory; all of it unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A tensor that every process has whole, sharded like `other` of the same shape; sends nothing."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def sharded_as(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A whole state dict, sharded like the module of these names and shapes."""
    own = module.state_dict()
    fitting = (name for name in state if name in own and own[name].shape == state[name].shape)
    return state | {name: sharded_like(state[name], own[name]) for name in fitting}


@contextmanager
def _alone() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
        yield


def _reason(error: CheckpointException) -> str:
    """What went wrong on the first process that failed."""
    failure, _ = error.failures[min(error.failures)]
    return str(failure).split("\n")[0]
