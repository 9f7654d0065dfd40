"""Order of examples: a permutation per epoch, a pure function of seed and position, in memory that does not grow."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from data import source as source_module
from data.loaders import train_loader
from data.order import FullShuffle, WindowShuffle, philox
from data.source import Source
from data.stream import TrainStream


class Indices(Source):
    """Example i is the token i."""

    item_key = "tokens"
    item_shape = (1,)
    class_names = ["one"]

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def labels(self) -> np.ndarray:
        return np.broadcast_to(np.int64(0), self.count)

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        return torch.tensor([index]), 0


def shards(*sizes: int) -> np.ndarray:
    return np.cumsum([0, *sizes])


def epoch(order, number: int = 0) -> np.ndarray:
    return np.array([order.example(p) for p in range(number * order.count, (number + 1) * order.count)])


def test_small_sets_are_shuffled_as_they_always_were():
    expected = np.arange(1000, dtype=np.uint32)
    philox(7, 2, 1).shuffle(expected)
    assert np.array_equal(epoch(FullShuffle(1000, seed=7), 2), expected)
    # Written out, since resumed runs depend on it.
    assert [TrainStream(Indices(10), seed=3).example(p) for p in range(10)] == [2, 3, 6, 1, 7, 4, 8, 0, 9, 5]
    assert isinstance(Indices(2**24).order(0), FullShuffle)
    assert isinstance(Indices(2**24 + 1).order(0), WindowShuffle)


@pytest.mark.parametrize("window", [1, 3, 4, 100])
def test_every_epoch_shows_every_example_once(window):
    order = WindowShuffle(shards(5, 0, 17, 1, 0, 8, 30, 2, 9), window=window, seed=4)
    epochs = [epoch(order, e) for e in range(3)]
    for shown in epochs:
        assert sorted(shown) == list(range(72))
    assert not any(np.array_equal(epochs[0], e) for e in epochs[1:])
    other = WindowShuffle(shards(5, 0, 17, 1, 0, 8, 30, 2, 9), window=window, seed=5)
    assert not np.array_equal(epochs[0], epoch(other))


def test_the_order_does_not_depend_on_what_was_asked_before():
    starts = shards(*range(1, 30))
    whole = [WindowShuffle(starts, window=4, seed=1).example(p) for p in range(2 * 435)]
    jumping = WindowShuffle(starts, window=4, seed=1)
    for position in np.random.default_rng(0).permutation(2 * 435):
        assert jumping.example(int(position)) == whole[position]


def test_a_window_is_read_from_its_shards_alone_and_announces_the_next_one():
    starts, announced = shards(*[10] * 12), []
    order = WindowShuffle(
        starts, window=4, seed=0, on_window=lambda *groups: announced.append([g.tolist() for g in groups])
    )
    shown = epoch(order) // 10
    windows = [set(shown[40 * w : 40 * (w + 1)]) for w in range(3)]
    assert [len(w) for w in windows] == [4, 4, 4] and set.union(*windows) == set(range(12))
    assert [tuple(map(set, pair)) for pair in announced[:2]] == list(zip(windows, windows[1:], strict=False))
    assert announced[2][1] == order.shards(1, 0).tolist()  # the first of the next epoch


def test_examples_travel_through_the_whole_epoch():
    """Positions in two epochs are not correlated, and neighbours of the source are apart."""
    order = WindowShuffle(shards(*[50] * 400), window=32, seed=0)
    places = np.argsort([epoch(order, 0), epoch(order, 1)], axis=1)
    assert abs(np.corrcoef(places)[0, 1]) < 0.1  # of 12.5 windows: a window's place is one draw
    assert np.abs(places[0] - places[1]).mean() == pytest.approx(len(places[0]) / 3, rel=0.1)
    # Within an epoch two neighbours in a shard are about a third of a window apart: 32 * 50 / 3 = 533 examples.
    apart = np.abs(np.diff(places[0].reshape(400, 50), axis=1))
    assert apart.mean() == pytest.approx(533, rel=0.1)
    # Every run of 256 examples, a batch, comes from nearly all shards of its window.
    batches = (epoch(order) // 50)[: 256 * 70].reshape(70, 256)
    assert min(len(set(batch)) for batch in batches) >= 28


def test_memory_is_that_of_two_windows():
    """A billion examples, where one permutation takes 4 GB."""
    starts = np.arange(0, 10**9 + 1, 10**4)
    tracemalloc.start()
    order = WindowShuffle(starts, window=32, seed=0)
    shown = {order.example(p) for p in range(10**9 - 10**5, 10**9 + 10**6, 999)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(shown) > 1000
    assert (
        peak < 30e6
    )  # 100,000 shards with 20 bytes each and the arrays of a shuffle, three windows of 8 bytes each


def test_workers_and_processes_see_one_order_and_resume_in_it(monkeypatch):
    monkeypatch.setattr(source_module, "MOST_SHUFFLED_AT_ONCE", 50)
    monkeypatch.setattr(source_module, "_BLOCK", 4)
    monkeypatch.setattr(source_module, "_BLOCKS", 3)
    source = Indices(101)

    def steps(count: int, batch: int, first: int = 0, **place) -> list[list[int]]:
        batches = iter(train_loader(source, seed=2, batch_size=batch, start_step=first, **place))
        return [next(batches)["tokens"][:, 0].tolist() for _ in range(count)]

    whole = steps(30, 6)
    assert sorted(sum(whole, [])[:101]) == list(range(101))
    assert steps(12, 6, first=18) == whole[18:] and steps(4, 6, first=26, num_workers=2) == whole[26:]
    halves = [steps(30, 3, num_processes=2, process_index=rank) for rank in range(2)]
    assert [left + right for left, right in zip(*halves, strict=True)] == whole


def test_a_stream_is_pickled_without_its_permutations():
    stream = TrainStream(Indices(10**5), seed=5)
    shown = [stream.example(p) for p in range(20)]
    content = pickle.dumps(stream)
    assert len(content) < 1000 and [pickle.loads(content).example(p) for p in range(20)] == shown
