import os
import time
from datetime import timedelta

import pytest
import torch
from torch import multiprocessing

from common import distributed
from common.build import ConfigError

GROUP_SECONDS = 10  # of the time-out of collectives


def test_alone_everything_is_the_identity():
    values = torch.arange(6.0, requires_grad=True).view(2, 3)
    assert not distributed.is_active() and distributed.is_main()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    distributed.barrier()
    for collective in (distributed.all_gather_cat, distributed.all_reduce_sum, distributed.all_reduce_mean):
        result = collective(values)
        assert torch.equal(result, values) and not result.requires_grad
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]


def test_sums_do_not_alias_their_input():
    values = torch.ones(3)
    distributed.all_reduce_sum(values).zero_()
    assert values.sum() == 3


def _worker(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": 3, "timeout": timedelta(seconds=GROUP_SECONDS)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", **options)
    assert distributed.is_active() and distributed.is_main() == (rank == 0)
    assert (distributed.rank(), distributed.world_size()) == (rank, 3)
    own = torch.full((2, 2), float(rank), requires_grad=True)
    gathered = distributed.all_gather_cat(own.t())  # not contiguous
    assert torch.equal(gathered, torch.arange(3.0).repeat_interleave(2)[:, None].expand(6, 2))
    total, mean = distributed.all_reduce_sum(own), distributed.all_reduce_mean(own)
    assert (total == 3).all() and (mean == 1).all() and (own == rank).all()
    assert not (gathered.requires_grad or total.requires_grad or mean.requires_grad)
    assert distributed.gather_objects((rank, ["x"] * rank)) == [(0, []), (1, ["x"]), (2, ["x", "x"])]
    _wait_for_others(rank)
    distributed.barrier()
    torch.distributed.destroy_process_group()
    assert not distributed.is_active() and distributed.world_size() == 1


def _wait_for_others(rank: int) -> None:
    """Work of one process, or of one of every node, that takes longer than a collective may."""
    os.environ["LOCAL_RANK"] = str((0, 1, 0)[rank])  # two nodes: processes 0 and 1, and process 2

    def work() -> str:
        if rank == 0:
            time.sleep(GROUP_SECONDS + 2)
        return f"of {rank}"

    assert distributed.on_local_main(work) == f"of {(0, 0, 2)[rank]}"
    assert distributed.on_main(lambda: rank * 7 + 1) == 1
    for together in (distributed.on_local_main, distributed.on_main):
        with pytest.raises(ConfigError, match="training.max_steps is wrong"):
            together(lambda: _fail(ConfigError("training.max_steps is wrong")))
        with pytest.raises(Spelled if rank == 0 else ValueError, match="twice twice"):
            distributed.on_main(lambda: _fail(Spelled(word="twice")))


class Spelled(Exception):
    """Cannot be pickled, as errors with keywords cannot."""

    def __init__(self, *, word: str) -> None:
        super().__init__(f"{word} {word}")


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_three_processes_meet(tmp_path):
    # Forked: starting an interpreter and importing torch takes seconds, three times.
    multiprocessing.start_processes(_worker, (str(tmp_path / "store"),), nprocs=3, start_method="fork")
