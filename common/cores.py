"""CPU cores that this process may use, and how many of them load data."""

import os
from pathlib import Path

from common.console import warn

CGROUP = Path("/sys/fs/cgroup")
# Workers per process: with a GPU, as in the recipes for clusters at most; on a CPU, the model needs the cores itself.
MOST_WORKERS, MOST_WORKERS_CPU, CORES_PER_WORKER_CPU = 12, 4, 4


def local_processes() -> int:
    """Processes of this program on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """CPU cores that this process and its neighbours may use: by affinity, and by the quota of a container."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    number = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = container_numbers("cpu.max") or [
        *container_numbers("cpu/cpu.cfs_quota_us"),
        *container_numbers("cpu/cpu.cfs_period_us"),
    ]
    if len(quota) == 2 and quota[0] > 0:  # microseconds in every so many
        number = min(number, max(1, int(quota[0] / quota[1])))
    return number


def container_numbers(file: str) -> list[int]:
    """The numbers in a file of the kernel on this container; empty if there is none, or no limit ("max")."""
    try:
        words = (CGROUP / file).read_text().split()
    except OSError:
        return []
    return [int(word) for word in words] if all(w.lstrip("-").isdigit() for w in words) else []


def loading_workers(device: str) -> tuple[int, str]:
    """Data loading processes per process that suit this machine, and why; `device` is cpu, cuda, ..."""
    number, processes = cores(), local_processes()
    each = number // processes
    if device == "cpu":
        workers = min(MOST_WORKERS_CPU, each // CORES_PER_WORKER_CPU)
        why = f"one for every {CORES_PER_WORKER_CPU} cores, of which this process has {each}: the model needs them"
        return workers, why
    return max(0, min(MOST_WORKERS, each - 1)), f"of {number} cores for {processes} processes"


def warn_of_workers(key: str, workers: int, device: str) -> None:
    """Name data loading processes that this machine's cores cannot serve."""
    number, processes = cores(), local_processes()
    if workers and (workers + (device == "cpu")) * processes > max(number, 2):
        warn(
            f"{key}={workers} in each of {processes} processes is more than the {number} cores of this machine can"
            f" serve; write {key}=auto"
        )
