"""What this machine gives to a training process: memory, and how fast it multiplies."""

import time
from pathlib import Path

import torch

from common.cores import container_numbers, local_processes

PROBE_SIDE, PROBE_SECONDS = {"cpu": 512, "cuda": 4096}, 0.025


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still take on the device, its share on CPUs; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        numbers = [*container_numbers(limit), *container_numbers(used)]
        if len(numbers) == 2:
            found.append(max(0, numbers[0] - numbers[1]))
    return min(found) // local_processes() if found and device.type == "cpu" else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of one matrix product, the best of as many as fit into 25 ms after the first."""
    side = PROBE_SIDE.get(device.type, 512)
    left = torch.ones(side, side, device=device, dtype=dtype)
    best, spent = float("inf"), 0.0
    torch.mm(left, left)
    while spent < PROBE_SECONDS:
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, left)
        _wait(device)
        seconds = max(time.perf_counter() - start, 1e-9)
        best, spent = min(best, seconds), spent + seconds
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
