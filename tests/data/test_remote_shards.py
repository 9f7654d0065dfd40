"""Data sets of remote shards: the same batches as local ones, through a cache smaller than the data."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from data import shards
from data.loaders import eval_loader, train_loader
from data.webdataset_shards import WebDataset
from storage.remote_files import RemoteError
from tests.data.test_webdataset_shards import samples, write_shard
from tests.data.web_server import serve

SHARDS, SAMPLES = 8, 5


@pytest.fixture
def web(tmp_path):
    (tmp_path / "server").mkdir()
    for shard in range(SHARDS):
        write_shard(tmp_path / f"server/{shard}.tar", samples(range(10 * shard, 10 * shard + SAMPLES)))
    with serve(tmp_path / "server") as (address, faults):
        yield address, faults


def options(tmp_path, **other):
    size = (tmp_path / "server/0.tar").stat().st_size
    return {
        "image_size": 8,
        "shuffle_window": 2,
        "cache": tmp_path / "cache",
        "cache_gigabytes": 6.5 * size / 1e9,
        **other,
    }


def batches(source, count: int, **place) -> list[tuple[torch.Tensor, list[int]]]:
    loader = iter(train_loader(source, seed=3, batch_size=4, **place))
    return [(b["images"], b["labels"].tolist()) for b in (next(loader) for _ in range(count))]


def same(left, right) -> bool:
    return all(torch.equal(a, b) and c == d for (a, c), (b, d) in zip(left, right, strict=True))


def test_batches_are_those_of_local_shards_in_the_same_order(tmp_path, web, monkeypatch):
    address, faults = web
    place = f"{tmp_path}/server/{{0..7}}.tar"
    local = WebDataset(path=place, image_size=8, shuffle="windows", shuffle_window=2, keep_index=False)
    source = WebDataset(path=f"{address}/{{0..7}}.tar", **options(tmp_path))
    fetched = [path for path, _ in faults.downloads()]
    assert sorted(fetched) == [f"/{n}.tar" for n in range(SHARDS)]  # each once, for the index
    wanted = batches(local, 20)  # two epochs
    assert same(batches(source, 20), wanted)
    assert same(batches(source, 6, start_step=14, num_workers=2), wanted[14:])
    assert same(batches(pickle.loads(pickle.dumps(source)), 3), wanted[:3])
    assert 0 < len(list((tmp_path / "cache").glob("*.tar"))) <= 6  # of 8
    # Nothing is asked of the network when an indexed data set is opened, whatever is left of its shards.
    for file in (tmp_path / "cache").glob("*.tar"):
        file.unlink()
    faults.always = 404
    with monkeypatch.context() as patched:
        patched.setattr(shards.Shards, "index", lambda *args: pytest.fail("a shard was looked at again"))
        again = WebDataset(path=f"{address}/{{0..7}}.tar", **options(tmp_path))
    # With other options the indices of the single shards, which are kept too, are enough.
    assert len(WebDataset(path=f"{address}/{{0..6}}.tar", **options(tmp_path))) == 7 * SAMPLES
    # A shard that cannot be had is an error, and not forty unreadable images.
    with pytest.raises(RemoteError, match=rf"{address}/\d.tar does not exist \(404"):
        batches(again, 1)
    faults.always = None
    assert same(batches(again, 20), wanted)


def test_an_index_beside_a_remote_shard_spares_its_fetch(tmp_path, web):
    """`.index` files of local shards go to the server with them; those of other shards or labels are not believed."""
    address, faults = web
    local = WebDataset(path=f"{tmp_path}/server/{{0..3}}.tar", image_size=8)
    shutil.copy(tmp_path / "server/0.tar.index", tmp_path / "server/3.tar.index")
    write_shard(tmp_path / "server/3.tar", samples(range(30, 38)))
    source = WebDataset(path=f"{address}/{{0..2}}.tar", **options(tmp_path))
    assert {path for path, _ in faults.downloads()} == {f"/{n}.tar.index" for n in range(3)}
    assert (
        np.array_equal(source.labels, local.labels[: 3 * SAMPLES])
        and source.name(7) == f"{address}/1.tar: 00000012.jpg"
    )
    assert len(WebDataset(path=f"{address}/3.tar", **options(tmp_path))) == 8
    assert "/3.tar" in {path for path, _ in faults.downloads()}


def test_evaluation_reads_remote_shards_in_their_order(tmp_path, web):
    address, _ = web
    source = WebDataset(path=[f"{address}/{n}.tar" for n in (3, 1)], **options(tmp_path))
    shown = torch.cat([b["images"][:, 0].float().mean((1, 2)) for b in eval_loader(source, batch_size=3)])
    assert shown.round().tolist() == [30, 31, 32, 33, 34, 10, 11, 12, 13, 14]
    assert source.name(7) == f"{address}/1.tar: 00000012.jpg"


def test_the_window_is_fetched_before_it_is_needed(tmp_path, web):
    address, faults = web
    source = WebDataset(path=f"{address}/{{0..7}}.tar", **options(tmp_path))
    for file in (tmp_path / "cache").glob("*.tar"):
        file.unlink()
    faults.requests.clear()
    order = source.order(0)
    order.example(0)
    source._shards.cache._thread.join(60)
    expected = {int(n) for n in [*order.shards(0, 0), *order.shards(0, 1)]}
    assert {int(path[1]) for path, _ in faults.downloads()} == expected and len(expected) == 4
    for position in range(4 * SAMPLES):
        source.load(order.example(position), np.random.default_rng(0))
        if position < 2 * SAMPLES:
            assert len(faults.downloads()) == 4  # all were there


def test_a_cache_that_cannot_hold_what_is_read_at_once_is_refused(tmp_path, web):
    address, _ = web
    size = (tmp_path / "server/0.tar").stat().st_size
    small = {"path": f"{address}/{{0..7}}.tar", "cache_gigabytes": 5.5 * size / 1e9}
    with pytest.raises(
        ValueError, match=r"cache_gigabytes=\S+ is too small: three windows of shuffle_window=2 shards"
    ):
        WebDataset(**options(tmp_path, **small))
    with pytest.raises(ValueError, match=r"shuffle='full', which reads all shards at all times, need"):
        WebDataset(**options(tmp_path, **small, shuffle="full"))
    assert len(WebDataset(**options(tmp_path, **small, shuffle_window=1))) == SHARDS * SAMPLES
    for wrong in ({"shuffle_window": 0}, {"cache_gigabytes": 0}):
        with pytest.raises(ValueError, match=f"{[*wrong][0]}=0.* must be"):
            WebDataset(**options(tmp_path, **{**small, **wrong}))
