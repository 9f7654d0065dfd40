"""Time and memory of a piece of code, each measurement in a process of its own where needed."""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def clock(device: str) -> float:
    """Wall-clock seconds, once the device has finished all work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def resident_bytes(field: str) -> int:
    """Memory of this process now (`VmRSS`) or at its peak (`VmHWM`); always the peak where /proc is missing."""
    status = Path("/proc/self/status")
    if not status.is_file():
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def bytes_now(device: str) -> int:
    """Memory in use on the graphics card or in this process; the peak counts from here."""
    if not device.startswith("cuda"):
        return resident_bytes("VmRSS")
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_bytes(device: str) -> int:
    """Peak of memory since `bytes_now`, or of this process."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else resident_bytes("VmHWM")


def in_new_process(function: Callable, *arguments: Any) -> Any:
    """Result of `function` in a process whose memory holds nothing of earlier measurements."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def argument_parser(
    description: str | None, threads: int = 1, device: str | None = None
) -> argparse.ArgumentParser:
    """A parser with `--threads`, and with `--device` if a default is given."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--threads", type=int, default=threads, help="processor threads")
    if device is not None:
        parser.add_argument("--device", default=device)
    return parser
