"""Image folders: classes, labels, transforms, unusable folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.build import ConfigError, build
from data import DATASETS
from data.image_folder import ImageFolder
from data.loaders import eval_loader, train_loader
from data.source import CorruptSample


def write(path, value: int, size=(20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "cat" / "b.png", 10)
    write(tmp_path / "cat" / "deeper" / "a.JPG", 20)
    write(tmp_path / "bird" / "a.webp", 30)
    write(tmp_path / "bird" / "b.jpeg", 40)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._b.png").write_bytes(b"left by a file manager")
    return tmp_path


def values(source) -> list[int]:
    return [
        round(source.load(i, np.random.default_rng(0))[0].float().mean().item()) for i in range(len(source))
    ]


def test_classes_are_sorted_subfolders(folder):
    source = ImageFolder(path=folder, image_size=16)
    assert source.class_names == ["bird", "cat"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert values(source) == [30, 40, 10, 20]
    assert source.class_counts() == {"bird": 2, "cat": 2}
    image, label = source.load(2, np.random.default_rng(0))
    assert image.dtype == torch.uint8 and image.shape == source.item_shape == (3, 16, 16) and label == 1


def test_built_by_name_with_checked_options(folder):
    section = {"name": "image_folder", "path": str(folder), "image_size": 16, "random_flip": True}
    assert len(build("data.train", DATASETS, section)) == 4
    with pytest.raises(ConfigError, match="random_flip"):
        build("data.train", DATASETS, {**section, "random_flp": True})


def test_unusable_folders_end_with_one_clear_line(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ImageFolder(path=tmp_path / "nowhere", image_size=16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is empty"):
        ImageFolder(path=tmp_path / "empty", image_size=16)
    write(tmp_path / "flat" / "a.png", 1)
    with pytest.raises(ValueError, match="flat has no labels"):
        ImageFolder(path=tmp_path / "flat", image_size=16)
    (tmp_path / "flat" / "hollow").mkdir()
    with pytest.raises(ValueError, match="hollow holds no image"):
        ImageFolder(path=tmp_path / "flat", image_size=16)


def test_corrupt_image_is_replaced_in_training_and_left_out_of_evaluation(folder):
    broken = folder / "bird" / "b.jpeg"
    broken.write_bytes(broken.read_bytes()[:200])
    source = ImageFolder(path=folder, image_size=16)
    with pytest.raises(CorruptSample, match="b.jpeg"):
        source.load(1, np.random.default_rng(0))

    batch = next(iter(train_loader(source, seed=3, batch_size=4)))
    assert [name.split(":")[0] for name in batch["skipped"]] == [str(broken)]
    shown = sorted(
        zip(
            batch["images"].float().mean((1, 2, 3)).round().int().tolist(),
            batch["labels"].tolist(),
            strict=True,
        )
    )
    assert shown == [(10, 1), (10, 1), (20, 1), (30, 0)]  # the next one in the source takes its place

    batches = list(eval_loader(source, batch_size=1))
    assert [b["positions"].tolist() for b in batches] == [[0], [], [2], [3]]
    assert batches[1]["images"].shape == (0, 3, 16, 16) and len(batches[1]["skipped"]) == 1


def test_nothing_readable_ends_the_run(tmp_path):
    for name in "abc":
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{name}.png").write_bytes(b"nothing")
    source = ImageFolder(path=tmp_path, image_size=16)
    with pytest.raises(ValueError, match="3 examples in a row cannot be read"):
        next(iter(train_loader(source, seed=0, batch_size=2)))
