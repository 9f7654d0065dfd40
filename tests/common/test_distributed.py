import pytest
import torch
from torch import multiprocessing

from common import distributed


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
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    assert distributed.is_active() and distributed.is_main() == (rank == 0)
    assert (distributed.rank(), distributed.world_size()) == (rank, 3)
    own = torch.full((2, 2), float(rank), requires_grad=True)
    gathered = distributed.all_gather_cat(own.t())  # not contiguous
    assert torch.equal(gathered, torch.arange(3.0).repeat_interleave(2)[:, None].expand(6, 2))
    total, mean = distributed.all_reduce_sum(own), distributed.all_reduce_mean(own)
    assert (total == 3).all() and (mean == 1).all() and (own == rank).all()
    assert not (gathered.requires_grad or total.requires_grad or mean.requires_grad)
    assert distributed.gather_objects((rank, ["x"] * rank)) == [(0, []), (1, ["x"]), (2, ["x", "x"])]
    distributed.barrier()
    torch.distributed.destroy_process_group()
    assert not distributed.is_active() and distributed.world_size() == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_three_processes_meet(tmp_path):
    # Forked: starting an interpreter and importing torch takes seconds, three times.
    multiprocessing.start_processes(_worker, (str(tmp_path / "store"),), nprocs=3, start_method="fork")
