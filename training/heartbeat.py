"""A sign of life during a step that takes long: the first one with its compilation, or all of them on a slow device."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common import distributed
from common.console import duration, say

PATIENCE = 30.0  # seconds; later lines come after 60, 120, 240, ...


class Heartbeat:
    """Prints on the main process what has been going on for 30 seconds, by a thread that lives in the `with` block."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.doing: tuple[str, float] | None = None  # what, and since when
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Heartbeat":
        if distributed.is_main():
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Watch over a block."""
        self.doing = (what, time.monotonic())
        try:
            yield
        finally:
            self.doing = None

    def _look(self) -> None:
        told: tuple[tuple[str, float] | None, float] = (
            None,
            0.0,
        )  # what was told of last, and the next time for it
        while not self.ended.wait(self.patience / 10):
            doing = self.doing
            if doing is None:
                continue
            what, since = doing
            passed = time.monotonic() - since
            if passed >= (told[1] if told[0] is doing else self.patience):
                say(f"{what} has been running for {duration(passed)}")
                told = (doing, 2 * passed)
