"""Order of examples: the same for any number of workers and processes, and after a resume."""

import itertools
import signal
import subprocess

import numpy as np
import pytest
import torch

from data.loaders import eval_loader, train_loader
from data.source import CorruptSample, Source
from data.stream import TrainStream


class Numbers(Source):
    """Example i is an image full of i with some noise; those in ``corrupt`` cannot be read."""

    item_key = "images"
    item_shape = (3, 2, 2)
    class_names = ["even", "odd"]

    def __init__(self, count: int, corrupt: tuple[int, ...] = ()) -> None:
        self.labels = np.arange(count) % 2
        self.corrupt = corrupt

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        noise = torch.from_numpy(rng.integers(0, 256, (2, 2), dtype=np.uint8))
        if index in self.corrupt:
            raise CorruptSample(f"number {index}", "broken")
        value = torch.full((2, 2), index, dtype=torch.uint8)
        return torch.stack([value, noise, noise]), int(self.labels[index])


def take(loader, count: int) -> list[dict]:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


def same(left: list[dict], right: list[dict]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys()
        and a["skipped"] == b["skipped"]
        and all(torch.equal(a[k], b[k]) for k in ("images", "labels", "positions"))
        for a, b in zip(left, right, strict=True)
    )


def numbers(batches: list[dict]) -> list[int]:
    return [n for batch in batches for n in batch["images"][:, 0, 0, 0].tolist()]


@pytest.mark.parametrize("make", [train_loader, eval_loader])
def test_workers_outlive_signals_to_the_process_group(make):
    """Schedulers signal every process of a job, and the main process needs batches until it has saved."""
    options = {"seed": 0} if make is train_loader else {}
    batches = iter(make(Numbers(200), batch_size=4, num_workers=2, **options))
    workers = [str(worker.pid) for worker in batches._workers]
    for moment in ("while they start", "while they work"):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # From another process: the parent itself may end its workers.
            subprocess.run(["kill", f"-{int(number)}", *workers], check=True)
        assert len(list(itertools.islice(batches, 20))) == 20, moment
    assert all(worker.is_alive() for worker in batches._workers)
    batches._workers[0].terminate()
    batches._workers[0].join(60)
    assert batches._workers[0].exitcode == 0


def test_every_epoch_shows_every_example_once_in_another_order():
    batches = take(train_loader(Numbers(10), seed=0, batch_size=4), 5)
    shown = numbers(batches)
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:] and shown != numbers(
        take(train_loader(Numbers(10), seed=1, batch_size=4), 5)
    )
    assert torch.cat([b["positions"] for b in batches]).tolist() == list(range(20))
    assert torch.cat([b["labels"] for b in batches]).tolist() == [n % 2 for n in shown]
    assert len({b["images"][i, 1].numpy().tobytes() for b in batches for i in range(4)}) > 15  # fresh noise


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    source = Numbers(10, corrupt=(3, 4))
    alone = take(train_loader(source, seed=0, batch_size=4), 8)
    assert any(b["skipped"] for b in alone)
    assert same(alone, take(train_loader(source, seed=0, batch_size=4, num_workers=num_workers), 8))
    alone = list(eval_loader(source, batch_size=4))
    assert same(alone, list(eval_loader(source, batch_size=4, num_workers=num_workers)))


@pytest.mark.parametrize(
    ("processes", "accumulation", "batch_size"), [(2, 1, 6), (1, 3, 4), (2, 2, 3), (3, 4, 1)]
)
def test_a_step_is_the_same_however_it_is_divided(processes, accumulation, batch_size):
    source, wanted = Numbers(30), take(train_loader(Numbers(30), seed=5, batch_size=12), 4)
    parts = [
        take(
            train_loader(
                source,
                seed=5,
                batch_size=batch_size,
                accumulation=accumulation,
                num_processes=processes,
                process_index=rank,
            ),
            4 * accumulation,
        )
        for rank in range(processes)
    ]
    for step, batch in enumerate(wanted):
        micro = range(step * accumulation, (step + 1) * accumulation)
        for key in ("images", "labels", "positions"):
            assert torch.equal(
                torch.cat([parts[r][m][key] for m in micro for r in range(processes)]), batch[key]
            )


def test_resume_gives_the_batches_that_would_have_come():
    options = {"seed": 2, "batch_size": 3, "accumulation": 2, "num_processes": 2, "process_index": 1}
    source = Numbers(17, corrupt=(8,))
    whole = take(train_loader(source, **options), 20)
    assert same(whole[14:], take(train_loader(source, **options, start_step=7), 6))
    assert same(whole[14:], take(train_loader(source, **options, start_step=7, num_workers=2), 6))


def test_making_a_loader_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(train_loader(Numbers(10), seed=0, batch_size=4, num_workers=1), 2)
    list(eval_loader(Numbers(10), batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_corrupt_example_is_replaced_by_the_next_and_named():
    good = take(train_loader(Numbers(10), seed=0, batch_size=10), 1)[0]
    batch = take(train_loader(Numbers(10, corrupt=(3, 4, 9)), seed=0, batch_size=10), 1)[0]
    replaced = {3: 5, 4: 5, 9: 0}
    assert numbers([batch]) == [replaced.get(n, n) for n in numbers([good])]
    assert batch["labels"].tolist() == [n % 2 for n in numbers([batch])]
    assert sorted(set(batch["skipped"])) == [f"number {n}: broken" for n in (3, 4, 9)]
    kept = torch.tensor([n not in replaced for n in numbers([good])])
    assert torch.equal(batch["images"][kept], good["images"][kept])


def test_evaluation_shows_every_example_once_in_order():
    source = Numbers(23, corrupt=(4, 20))
    for processes in (1, 2, 3, 5, 30):
        batches = [
            b
            for rank in range(processes)
            for b in eval_loader(source, batch_size=4, num_processes=processes, process_index=rank)
        ]
        assert numbers(batches) == [n for n in range(23) if n not in (4, 20)]
        assert [s for b in batches for s in b["skipped"]] == ["number 4: broken", "number 20: broken"]


def test_order_does_not_depend_on_where_reading_starts():
    order = [TrainStream(Numbers(50), seed=9).example(p) for p in range(200)]
    stream = TrainStream(Numbers(50), seed=9)
    jumps = np.random.default_rng(0).permutation(200)
    assert [stream.example(int(p)) for p in jumps] == [order[p] for p in jumps]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"accumulation": 0}, "accumulation=0"),
        ({"seed": -1}, "seed=-1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"num_processes": 2, "process_index": 2}, "process_index=2"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        train_loader(Numbers(4), **{"seed": 0, "batch_size": 2, **options})


def test_more_workers_than_cores_give_no_warning_of_pytorch(monkeypatch, recwarn):
    """Programs name such a number in terms of their options."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    source = Numbers(9)
    assert same(
        list(eval_loader(source, batch_size=4)), list(eval_loader(source, batch_size=4, num_workers=2))
    )
    assert not recwarn.list
