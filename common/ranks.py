"""Which of several processes this one is, without torch: a process that has not imported it works alone."""

import sys


def is_active() -> bool:
    """True when several processes work together."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Index of this process, 0 ... world_size() - 1."""
    return sys.modules["torch.distributed"].get_rank() if is_active() else 0


def world_size() -> int:
    """Number of processes that work together; 1 without a process group."""
    return sys.modules["torch.distributed"].get_world_size() if is_active() else 1


def is_main() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0
