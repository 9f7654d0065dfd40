"""The index of all shards: made once, shared, mapped and not held, made anew when a shard changes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from data import sample_index, shards
from data.loaders import train_loader
from data.webdataset_shards import WebDataset
from tests.data.test_webdataset_shards import captioned, image_bytes, samples, write_shard


@pytest.fixture
def pattern(tmp_path):
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", samples(range(10 * shard, 10 * shard + 4)))
    return str(tmp_path / "{0..2}.tar")


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.samples"))


def refuse(monkeypatch):
    monkeypatch.setattr(shards.Shards, "index", lambda *args: pytest.fail("a shard was looked at again"))


def test_is_made_once_and_anew_when_a_shard_changes(tmp_path, pattern, monkeypatch):
    first = WebDataset(path=pattern, image_size=8)
    (folder,) = kept(tmp_path)
    (tmp_path / f".{folder.name}.0123.part").mkdir()  # left by a killed process
    with monkeypatch.context() as patched:
        refuse(patched)
        second = WebDataset(path=pattern, image_size=8)
        assert np.array_equal(second.labels, first.labels) and second.class_names == first.class_names
        assert second.load(5, np.random.default_rng(0))[1] == 11 % 3
    write_shard(tmp_path / "1.tar", samples(range(50, 57)))
    assert len(WebDataset(path=pattern, image_size=8)) == 15 and kept(tmp_path) == [folder]
    assert len(first) == 12 and first.labels.tolist() == [
        v % 3 for s in range(3) for v in range(10 * s, 10 * s + 4)
    ]
    with pytest.raises(ValueError, match="not the index it was when the program started"):
        pickle.loads(pickle.dumps(first))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # neither locks nor parts


def test_other_limits_have_an_index_of_their_own(tmp_path):
    for value, width in enumerate((300, 500, 900)):
        write_shard(
            tmp_path / f"{value}.tar",
            captioned(range(value, value + 1), original_height=300, original_width=width),
        )
    everything = {"path": str(tmp_path / "{0..2}.tar"), "image_size": 8, "captions": True}
    whole, wide = WebDataset(**everything), WebDataset(**everything, max_aspect=2.0)
    assert (len(whole), len(wide), len(kept(tmp_path))) == (3, 2, 2)
    assert wide.captions([1]) == ["Bild Nr. 1 ä"] and wide.order(0).example(0) in (0, 1)
    assert not (wide._index.folder / "labels").exists()  # nothing is stored that no sample has


def test_is_mapped_and_not_pickled(tmp_path, pattern):
    source = WebDataset(path=pattern, image_size=8)
    index = source._index
    for column in (source.labels, index.starts, index.offsets, index.sizes):
        assert isinstance(column, np.memmap)
    content = pickle.dumps(source)
    assert b"00000001" not in content  # no name of a member
    write_shard(tmp_path / "long.tar", {f"{i}.png": image_bytes(1) for i in range(300)})
    longer = WebDataset(path=str(tmp_path / "long.tar"), image_size=8, num_classes=1)
    assert len(pickle.dumps(longer)) < len(content) + 100 and not longer.labels.any()
    again = pickle.loads(content)
    assert again.name(6) == source.name(6) == f"{tmp_path}/1.tar: 00000012.jpg"
    assert torch.equal(
        again.load(6, np.random.default_rng(0))[0], source.load(6, np.random.default_rng(0))[0]
    )
    batches = [next(iter(train_loader(s, seed=0, batch_size=5))) for s in (source, again)]
    assert torch.equal(batches[0]["images"], batches[1]["images"])


def test_where_nothing_can_be_written_it_is_held_in_memory_with_a_warning(
    tmp_path, pattern, monkeypatch, capsys
):
    kept_index = WebDataset(path=pattern, image_size=8, keep_index=False)
    assert not kept(tmp_path) and not capsys.readouterr().err and not list(tmp_path.glob("*.index"))

    def read_only(self):
        if tmp_path in self._place.parents:
            raise sample_index.WriteError(f"{self._place} is read-only")
        return entered(self)

    entered = sample_index.SampleIndexWriter.__enter__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sample_index.SampleIndexWriter, "__enter__", read_only)
    source = WebDataset(path=pattern, image_size=8)
    assert "the index of 12 images cannot be kept" in capsys.readouterr().err
    for held in (kept_index, pickle.loads(pickle.dumps(source))):
        assert held.labels.tolist() == [v % 3 for s in range(3) for v in range(10 * s, 10 * s + 4)]


def test_labels_that_do_not_fit_are_named_from_what_was_counted(tmp_path, pattern):
    with pytest.raises(ValueError, match="0.tar: 00000002.jpg has label 2, but there are 2 classes"):
        WebDataset(path=pattern, image_size=8, num_classes=2)
    (tmp_path / "0.tar").rename(tmp_path / "moved.tar")
    source = WebDataset(path=[str(tmp_path / "moved.tar"), str(tmp_path / "2.tar")], image_size=8)
    (tmp_path / "moved.tar").unlink()
    assert source.name(1).endswith("moved.tar: the image at byte 4096")


def _open(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank % 2)  # two nodes of two processes
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=4)
    made, real = [], shards.Shards.index

    def noted(self, path):
        made.append(path)
        return real(self, path)

    shards.Shards.index = noted
    source = WebDataset(path=f"{folder}/{{0..2}}.tar", image_size=8)
    assert source.labels.tolist() == [v % 3 for s in range(3) for v in range(10 * s, 10 * s + 4)]
    Path(folder, f"made{rank}").write_text(str(len(made)))
    try:
        WebDataset(path=f"{folder}/{{0..3}}.tar", image_size=8)
    except (ValueError, FileNotFoundError) as error:
        Path(folder, f"error{rank}").write_text(str(error))
    torch.distributed.destroy_process_group()


def test_one_process_of_a_node_reads_the_headers(tmp_path, pattern):
    """All processes get one index, and one error; two nodes with one file system make it once."""
    multiprocessing.start_processes(_open, (str(tmp_path),), nprocs=4, start_method="fork")
    made = [int((tmp_path / f"made{rank}").read_text()) for rank in range(4)]
    assert made[1] == made[3] == 0 and sorted((made[0], made[2])) == [0, 3]
    assert {(tmp_path / f"error{rank}").read_text() for rank in range(4)} == {
        f"shard {tmp_path}/3.tar does not exist; scripts/prepare_data.py makes shards of what you have"
    }
