"""Which example a position of a training run shows: pure functions of the seed and the position.

Position p belongs to epoch p // n, and every epoch shows each of the n examples once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

# The last word of Philox's 256-bit counter tells the uses of one key apart.
SHUFFLE, TRANSFORM, EVALUATION, WINDOW = 1, 2, 3, 4


def philox(seed: int, number: int, purpose: int, part: int = 0) -> np.random.Generator:
    """Generator keyed by (seed, number), independent for every ``purpose`` and ``part``; all arguments >= 0."""
    key = np.array([seed, number], dtype=np.uint64)
    counter = np.array([0, 0, part, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


class Order(ABC):
    """Endless order of the examples 0 ... n-1."""

    @abstractmethod
    def example(self, position: int) -> int:
        """The example shown at a position >= 0."""


class FullShuffle(Order):
    """One permutation of all examples per epoch; holds 4 bytes per example (8 from 2^32 examples on), twice."""

    def __init__(self, count: int, *, seed: int) -> None:
        self.count, self.seed = count, seed
        self._permutations: dict[int, np.ndarray] = {}

    def example(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        if epoch not in self._permutations:
            # A batch may straddle two epochs, so the one before is kept too; older ones are not needed again.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            dtype = np.uint32 if self.count < 2**32 else np.uint64  # half the memory in every worker
            order = np.arange(self.count, dtype=dtype)
            philox(self.seed, epoch, SHUFFLE).shuffle(order)
            self._permutations[epoch] = order
        return int(self._permutations[epoch][offset])


class WindowShuffle(Order):
    """Two levels: a permutation of the shards per epoch, then of the examples of every ``window`` shards in that order.

    Memory is per shard and per example of two windows, not per example of the data set, and what is read at one time
    lies in ``window`` shards.

    Args:
        starts: int64 [shards + 1], the first example of every shard, and the number of examples.
        window: shards whose examples are mixed.
        on_window: called with the shards of a window and those of the next one when a position of the window is asked
            for first.
    """

    def __init__(
        self,
        starts: np.ndarray,
        *,
        window: int,
        seed: int,
        on_window: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> None:
        self.seed, self.window, self._on_window = seed, window, on_window
        self._starts = np.asarray(starts)
        sizes = np.diff(self._starts)
        self._filled = np.flatnonzero(sizes).astype(np.uint32)  # filters may leave shards without examples
        self._sizes, self.count = sizes[self._filled], int(self._starts[-1])
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def example(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        _, ends = self._epoch(epoch)
        number = int(np.searchsorted(ends, offset, side="right"))
        if (epoch, number) not in self._windows:
            self._windows = dict(list(self._windows.items())[-1:])  # a batch may straddle two windows
            self._windows[epoch, number] = self._shuffled(epoch, number)
            if self._on_window is not None:
                following = (epoch, number + 1) if number + 1 < len(ends) else (epoch + 1, 0)
                self._on_window(self.shards(epoch, number), self.shards(*following))
        first = int(ends[number - 1]) if number else 0
        return int(self._windows[epoch, number][offset - first])

    def shards(self, epoch: int, number: int) -> np.ndarray:
        """uint32 [<= window], the shards of a window of an epoch."""
        return self._filled[self._epoch(epoch)[0][number * self.window : (number + 1) * self.window]]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Permutation of the shards that hold examples, and the offset in the epoch at which every window ends."""
        if epoch not in self._epochs:
            self._epochs = {e: v for e, v in self._epochs.items() if abs(e - epoch) == 1}
            order = philox(self.seed, epoch, SHUFFLE).permutation(len(self._sizes)).astype(np.uint32)
            ends = np.cumsum(self._sizes[order])
            self._epochs[epoch] = (order, np.append(ends[self.window - 1 : -1 : self.window], ends[-1]))
        return self._epochs[epoch]

    def _shuffled(self, epoch: int, number: int) -> np.ndarray:
        """int64 [examples of the window], in the order they are shown."""
        parts = [np.arange(self._starts[s], self._starts[s + 1]) for s in self.shards(epoch, number)]
        examples = np.concatenate(parts)
        philox(self.seed, epoch, WINDOW, number).shuffle(examples)
        return examples
