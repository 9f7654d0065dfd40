import numpy as np
import pytest
import torch

from common.image_store import ImageStore


def open_store(folder, **options):
    settings = {"count": 5, "side": 4, "num_tokens": 3, "facts": {"seed": 1}, **options}
    return ImageStore(folder, **settings)


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
    for png, npz in ((True, False), (False, True), (False, False)):
        folder = tmp_path / f"{png}{npz}"
        store = open_store(folder, png=png, npz=npz)
        fill(store, range(5))
        assert torch.equal(store.image(2), picture(2)[0])
        store.finish(np.arange(5))
        assert len(list(folder.glob("*.png"))) == 5 * png and (folder / "samples.npz").exists() == npz


def test_a_disk_that_is_too_small_is_known_before(tmp_path):
    with pytest.raises(ValueError, match="MiB are needed"):
        open_store(tmp_path, count=10**9, side=512)
    assert not (tmp_path / "unfinished.part").exists()


def test_a_failed_write_is_reported(tmp_path):
    store = open_store(tmp_path / "a")
    (tmp_path / "a" / "000002.png").mkdir()  # a picture cannot replace a folder
    store.put([2], picture(2), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(OSError, match="000002"):
        store.flush()
    assert open_store(tmp_path / "a").missing == 5
