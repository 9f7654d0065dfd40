"""Batches for training (endless, resumable at any step) and evaluation (every example once)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from common import signals
from data.source import Source
from data.stream import Batch, EvalStream, TrainStream


class MicroBatchPositions:
    """Positions of one process's micro-batches, endlessly from ``start_step``.

    With W processes, micro-batches of B and A of them per step, step s is made of positions
    [s*A*W*B, (s+1)*A*W*B); micro-batch m of process r holds rows [m*W*B + r*B, m*W*B + (r+1)*B) of it. The set of
    positions in a step thus depends on the global batch A*W*B only, not on how it is divided.
    """

    def __init__(
        self, *, batch_size: int, accumulation: int, num_processes: int, process_index: int, start_step: int
    ) -> None:
        for key, value in (("batch_size", batch_size), ("accumulation", accumulation)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if start_step < 0:
            raise ValueError(f"start_step={start_step} must not be negative")
        _check_process(num_processes, process_index)
        self.batch_size = batch_size
        self.stride = num_processes * batch_size
        self.first = start_step * accumulation * self.stride + process_index * batch_size

    def __iter__(self) -> Iterator[list[int]]:
        start = self.first
        while True:
            yield list(range(start, start + self.batch_size))
            start += self.stride


class BatchPositions:
    """Positions [start, stop) in batches, made one by one: lists for a billion examples would not fit into memory."""

    def __init__(self, start: int, stop: int, *, batch_size: int) -> None:
        self._starts, self._stop = range(start, stop, batch_size), stop

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield list(range(start, min(start + self._starts.step, self._stop)))


def train_loader(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    accumulation: int = 1,
    num_processes: int = 1,
    process_index: int = 0,
    start_step: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Endless loader of this process's micro-batches; ``accumulation`` of them make one step.

    Each batch is a dict of "images" uint8 [B, 3, H, W] or "tokens" int64 [B, N], "labels" int64 [B], "positions"
    int64 [B], "captions" list[str] if the source has them, and "skipped", the names of corrupt examples met while
    making it. ``iter()`` always begins at ``start_step``. The content depends on the seed and the step alone.
    """
    place = {"num_processes": num_processes, "process_index": process_index, "start_step": start_step}
    positions = MicroBatchPositions(batch_size=batch_size, accumulation=accumulation, **place)
    return _loader(TrainStream(source, seed=seed), positions, num_workers, pin_memory)


def eval_loader(
    source: Source,
    *,
    batch_size: int,
    num_processes: int = 1,
    process_index: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Loader that gives every example exactly once over all processes, nothing repeated to even them out.

    Process r reads the contiguous slice [r*n // W, (r+1)*n // W) in order, so results concatenated in rank order
    are in the order of the source. Slices may differ by one example, so batch counts may differ too: reduce once
    after the loop. Batches are as those of ``train_loader``; corrupt examples are missing from them and named.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    _check_process(num_processes, process_index)
    start = process_index * len(source) // num_processes
    stop = (process_index + 1) * len(source) // num_processes
    batches = BatchPositions(start, stop, batch_size=batch_size)
    return _loader(EvalStream(source), batches, num_workers, pin_memory)


def _loader(
    stream: TrainStream | EvalStream, batches: Iterable[list[int]], num_workers: int, pin_memory: bool
) -> DataLoader:
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} must not be negative")
    return _Loader(
        stream,
        batch_sampler=batches,  # positions, not indices
        num_workers=num_workers,
        collate_fn=_already_a_batch,  # streams deliver whole batches (`__getitems__`)
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        # Making an iterator draws a base seed: from a generator of its own, else the model's random numbers
        # would shift whenever a run resumes.
        generator=torch.Generator().manual_seed(0),
    )


def _already_a_batch(batch: Batch) -> Batch:
    return batch


class _Loader(DataLoader):
    """Workers outlive signals to the whole process group: the main process needs their batches until it stops."""

    def __iter__(self) -> Iterator[Batch]:
        with signals.held_back():  # from the first instruction of a worker on
            return super().__iter__()

    def check_worker_number_rationality(self) -> None:
        """PyTorch's warning of more workers than cores; who asks for the workers warns, in terms of its options."""


def _start_worker(worker: int) -> None:
    signals.obey_parent()


def _check_process(num_processes: int, process_index: int) -> None:
    if not 0 <= process_index < num_processes:
        raise ValueError(f"process_index={process_index} must be in 0..{num_processes - 1}")
