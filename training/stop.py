"""Stopping on request: SIGTERM (schedulers, preemption) and SIGINT (Ctrl-C) end a run after the current step."""

import signal
from types import FrameType

import torch

from common import distributed

ASK_EVERY = 10  # steps; asking the other processes costs a synchronisation


class StopRequest:
    """Notes the signals SIGTERM and SIGINT, and lets all processes agree on them."""

    def __init__(self) -> None:
        self.signal: int | None = None  # the last one that arrived at this process

    def catch(self) -> None:
        """Note signals from now on instead of ending at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def agreed(self, step: int, device: torch.device) -> bool:
        """Whether to stop after `step`: the same answer on every process."""
        if not distributed.is_active():
            return self.signal is not None
        if step % ASK_EVERY:
            return False
        flag = torch.tensor(float(self.signal is not None), device=device)
        return bool(distributed.all_reduce_sum(flag) > 0)

    @property
    def exit_code(self) -> int:
        """Exit code that shells expect of a program ended by a signal."""
        return 128 + (self.signal or signal.SIGTERM)
