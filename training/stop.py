"""Stopping on request: signals end a run after the current step, with a checkpoint."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from common import distributed
from common.signals import SignalWatch


class _Abandoned(SystemExit):
    """Raised inside work that a signal ends early."""


class StopRequest(SignalWatch):
    """Notes stop signals while the block runs, and lets all processes agree on them.

    `last_checkpoint` says what a second signal leaves; another thread calls it.
    """

    ends = False

    def __init__(self, last_checkpoint: Callable[[], str]) -> None:
        self._last_checkpoint = last_checkpoint
        self.step = 0  # steps done
        self._aside = ""  # work beside training that goes on now
        self._asked: list[tuple[torch.Tensor, dist.Work]] = []  # the question of the step before

    def plan(self) -> str:
        if self._aside:
            if self.ends:
                return f"ending without {self._aside}; {self.kept()}"
            return f"saving {f'after {self._aside}' if distributed.is_active() else 'now'} and stopping"
        after = "the next step" if distributed.is_active() else f"step {self.step + 1}"
        return f"saving after {after} and stopping"

    def kept(self) -> str:
        return self._last_checkpoint()

    def react(self, number: int) -> None:
        super().react(number)
        if self._aside and not distributed.is_active():
            raise _Abandoned(128 + number)

    def aside(self, what: str, work: Callable[[], None], *, saved: bool) -> None:
        """Do work beside training, on all processes; a signal ends it early where that harms nothing.

        A process alone leaves the work. One of several leaves the program if this step is `saved`; if not, the work
        goes on, because the others may wait for this process inside it.
        """
        several = distributed.is_active()
        try:
            self._aside, self.ends = what, several and saved
            if self.signal is not None:  # it came a moment ago
                self.react(self.signal)
            work()
        except _Abandoned:
            pass
        finally:
            self._aside, self.ends = "", False

    def agreed(self, *, now: bool) -> bool:
        """Whether to stop after this step: the same answer on every process, each of which asks after each step.

        The question travels while the next step runs, and its answer is read after that one: no device waits. `now`
        waits for the answer.
        """
        if not distributed.is_active():
            return self.signal is not None
        flag = torch.tensor(self.signal or 0)
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=distributed.side_group(), async_op=True)
        asked = [*self._asked, (flag, work)]
        self._asked = [] if now else [asked.pop()]
        for flag, work in asked:
            work.wait()
            self.signal = self.signal or int(flag) or None
        return bool(asked) and any(flag for flag, _ in asked)

    @property
    def exit_code(self) -> int:
        """Exit code that shells expect of a program ended by a signal."""
        return 128 + self.signal
