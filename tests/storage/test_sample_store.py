import os
import shutil

import numpy as np
import pytest
import torch

from evaluator.image_files import open_images
from storage import files, npz, sample_store
from storage.sample_store import SampleStore


def open_store(folder, **options):
    settings = {"count": 5, "side": 4, "num_tokens": 3, "facts": {"seed": 1}, **options}
    return SampleStore(folder, **settings)


def picture(index):
    return torch.full((1, 3, 4, 4), 10 * index, dtype=torch.uint8)


def fill(store, indices):
    for i in indices:
        store.put([i], picture(i), torch.full((1, 3), i))
    store.flush()


def test_interrupted_store_goes_on_and_becomes_the_final_files(tmp_path):
    fill(open_store(tmp_path), [3, 1])
    store = open_store(tmp_path)
    assert store.todo().tolist() == [0, 2, 4] and store.missing == 3
    fill(store, [4, 0, 2])
    assert torch.equal(store.image(4), picture(4)[0])
    store.finish(np.arange(5), note="x")
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 4, 4, 3) and arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_0"][:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
        assert arrays["labels"].tolist() == [0, 1, 2, 3, 4] and arrays["tokens"][3].tolist() == [3, 3, 3]
        assert arrays["arr_1"].tolist() == [0, 1, 2, 3, 4] and arrays["arr_1"].dtype == np.int64
    stream = open_images(tmp_path)
    assert stream.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(torch.stack(list(stream.images(range(5)))), torch.cat([picture(i) for i in range(5)]))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(5)), "samples.json", "samples.npz"]
    assert open_store(tmp_path).complete


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_unless_overwritten(tmp_path, finished):
    store = open_store(tmp_path)
    fill(store, range(5))
    if finished:
        store.finish(np.arange(5))
    with pytest.raises(ValueError, match="seed 1 instead of 2"):
        open_store(tmp_path, facts={"seed": 2})
    store = open_store(tmp_path, facts={"seed": 2}, overwrite=True)
    assert store.missing == 5 and not list(tmp_path.glob("0*.png"))


def test_a_store_without_images_does_not_stand_in_the_way(tmp_path):
    open_store(tmp_path)
    assert open_store(tmp_path, facts={"seed": 2}).missing == 5


def test_png_alone_and_npz_alone(tmp_path):
    for png, archived in ((True, False), (False, True), (False, False)):
        folder = tmp_path / f"{png}{archived}"
        store = open_store(folder, png=png, npz=archived)
        fill(store, range(5))
        assert torch.equal(store.image(2), picture(2)[0])
        store.finish(np.arange(5))
        assert len(list(folder.glob("*.png"))) == 5 * png and (folder / "samples.npz").exists() == archived


def test_a_disk_that_is_too_small_is_known_before(tmp_path):
    with pytest.raises(ValueError, match="unfinished work needs"):
        open_store(tmp_path, count=10**9, side=512)
    assert not (tmp_path / "unfinished.part").exists()


def test_the_room_for_the_final_file_is_asked_for_before(tmp_path, monkeypatch):
    """Pixels lie in it from the start; tokens are there twice, once in a file of their own, labels under two names."""
    count, side, tokens = 1000, 16, 512
    once = count * (3 * side * side + 8 * tokens + 1)
    for free, enough in ((once + 8 * count * tokens + 16 * count, False), (once + 9 * count * tokens, True)):
        monkeypatch.setattr(files, "free_bytes", lambda _, free=free: free)
        options = {"count": count, "side": side, "num_tokens": tokens}
        if enough:
            open_store(tmp_path, **options)
        else:
            with pytest.raises(ValueError, match="unfinished work needs"):
                open_store(tmp_path, **options)


def test_a_job_that_goes_on_needs_room_for_what_is_missing_only(tmp_path, monkeypatch):
    options = {"count": 8, "side": 256, "num_tokens": 3, "png": False}
    images = torch.zeros(8, 3, 256, 256, dtype=torch.uint8)
    store = open_store(tmp_path, **options)
    store.put(range(7), images[:7], torch.zeros(7, 3, dtype=torch.int64))
    store.flush()
    assert images.numel() > 1_500_000
    monkeypatch.setattr(files, "free_bytes", lambda _: 400_000)
    assert open_store(tmp_path, **options).missing == 1
    monkeypatch.setattr(files, "free_bytes", lambda _: 100_000)
    with pytest.raises(ValueError, match="unfinished work needs"):
        open_store(tmp_path, **options)


def pictures(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("step", ["crc", "members", "sync", "move", "facts", "clean"])
def test_killed_while_finishing_the_store_ends_with_the_same_bytes(tmp_path, monkeypatch, step):
    """Whatever step the end comes in, doing it again gives the files of a store that was never stopped."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fill(store := open_store(whole), range(5))
    store.finish(np.arange(5))

    def die(*_, **__):
        raise KeyboardInterrupt

    def half_cleaned(folder, *_, **__):
        (folder / "facts.json").unlink()
        (folder / "flags.npy").unlink()
        die()

    fill(store := open_store(broken), [4, 2, 0, 1, 3])
    (broken / ".000002.png.1.part").write_bytes(b"half")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        where, name, stand_in = {
            "crc": (npz.zlib, "crc32", die),
            "members": (npz.npy, "write_array", die),
            "sync": (npz.os, "fsync", die),
            "move": (sample_store.os, "replace", die),
            "facts": (sample_store, "write_json", die),
            "clean": (shutil, "rmtree", half_cleaned),
        }[step]
        patch.setattr(where, name, stand_in)
        store.finish(np.arange(5))
    again = open_store(broken)
    assert again.complete == (step == "clean")
    if not again.complete:
        assert again.missing == 0
        again.finish(np.arange(5))
    assert pictures(broken) == pictures(whole)
    for name in pictures(whole):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert open_store(broken).complete and not os.path.exists(broken / "unfinished.part")


def test_unfinished_work_that_lost_a_file_is_refused(tmp_path):
    fill(open_store(tmp_path), [0])
    (tmp_path / "unfinished.part" / "pixels.npz").unlink()
    with pytest.raises(ValueError, match="unfinished work without pixels.npz"):
        open_store(tmp_path)
    assert open_store(tmp_path, overwrite=True).missing == 5


def test_a_failed_write_is_reported(tmp_path):
    store = open_store(tmp_path / "a")
    (tmp_path / "a" / "000002.png").mkdir()  # a picture cannot replace a folder
    store.put([2], picture(2), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(OSError, match="000002"):
        store.flush()
    assert open_store(tmp_path / "a").missing == 5


def test_tokens_of_large_codebooks_are_kept(tmp_path):
    store = open_store(tmp_path, count=1, png=False)
    store.put([0], picture(1), torch.tensor([[0, 2**18 - 1, 2**33]]))
    store.flush()
    store.finish(np.arange(1))
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["tokens"].tolist() == [[0, 2**18 - 1, 2**33]]
