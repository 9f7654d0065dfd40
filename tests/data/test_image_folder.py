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
    with pytest.raises(ValueError, match="flat has no labels.*classes=one does without"):
        ImageFolder(path=tmp_path / "flat", image_size=16)
    assert len(ImageFolder(path=tmp_path / "flat", image_size=16, classes="one")) == 1
    with pytest.raises(ValueError, match="classes='two' is unknown"):
        ImageFolder(path=tmp_path / "flat", image_size=16, classes="two")
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


def test_hidden_folders_and_stray_files_are_left_out_by_name(tmp_path):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        write(tmp_path / name, 60)
    for name in (
        "cat/.ipynb_checkpoints/0-checkpoint.png",
        "dog/.thumbnails/0.png",
        ".ipynb_checkpoints/x.png",
    ):
        write(tmp_path / name, 200)
    write(tmp_path / "cover.png", 200)
    source = ImageFolder(path=tmp_path, image_size=16)
    assert values(source) == [60] * 3 and source.class_names == ["cat", "dog"]
    assert source.left_out.lines("x") == [
        "x: 3 left out, hidden, or made by an operating system: .ipynb_checkpoints/, cat/.ipynb_checkpoints/,"
        " dog/.thumbnails/",
        "x: 1 left out, beside the class folders, so of no class: cover.png",
    ]


def test_every_kind_of_picture_is_read(tmp_path):
    for number, ending in enumerate(
        ("png", "bmp", "tif", "tiff", "ppm", "gif", "jfif", "JPEG", "jpe", "pgm", "webp")
    ):
        (tmp_path / "cat").mkdir(exist_ok=True)
        kind = {"jfif": "JPEG", "jpe": "JPEG"}.get(ending)
        Image.new("L", (16, 16), 20 * number).save(tmp_path / "cat" / f"{number:02d}.{ending}", format=kind)
    source = ImageFolder(path=tmp_path, image_size=16)
    assert values(source) == pytest.approx([20 * n for n in range(11)], abs=1) and not source.left_out


def test_classes_keep_the_order_of_text_and_a_misleading_one_is_said(tmp_path, capsys):
    for number in range(12):
        write(tmp_path / "plain" / str(number) / "a.png", number)
        write(tmp_path / "padded" / f"{number:02d}" / "a.png", number)
    source = ImageFolder(path=tmp_path / "plain", image_size=16)
    assert source.class_names[:4] == ["0", "1", "10", "11"] and values(source)[:4] == [0, 1, 10, 11]
    said = capsys.readouterr().err
    assert "class folders are numbers, but sorted as text: label 2 is folder 10" in said
    assert values(ImageFolder(path=tmp_path / "padded", image_size=16)) == list(range(12))
    assert capsys.readouterr().err == ""


def test_names_that_look_alike_or_are_not_text(tmp_path, capsys):
    for name in ("Cat", "cat", "caf\udce9", "caf\u00e9", "cafe\u0301"):
        write(tmp_path / name / "\udcff.png", 60)
    source = ImageFolder(path=tmp_path, image_size=16)
    assert source.class_names == ["Cat", "cafe\u0301", "caf\u00e9", "caf\\xe9", "cat"]
    assert values(source) == [60] * 5
    said = capsys.readouterr().err
    assert said.count("look alike") == 1 and "(and 1 more pairs) look alike; they are different" in said
    with pytest.raises(CorruptSample, match="\udcff.png"):
        (tmp_path / "cat" / "\udcff.png").write_bytes(b"none")
        source.load(4, np.random.default_rng(0))


def test_a_class_without_images_tells_what_it_holds(tmp_path):
    write(tmp_path / "cat" / "a.png", 1)
    (tmp_path / "dog").mkdir()
    for number in range(4):
        (tmp_path / "dog" / f"{number}.dng").touch()
    with pytest.raises(
        ValueError, match=r"dog holds no image \(.jpg.*4 left out, not an image by its suffix: 0.dng"
    ):
        ImageFolder(path=tmp_path, image_size=16)


def test_one_class_takes_the_images_of_all_folders(tmp_path):
    for name in ("a/1.png", "0.PNG", "a/b/2.png", "empty/deep/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, 1) if name[-1] != "t" else (tmp_path / name).touch()
    source = ImageFolder(path=tmp_path, image_size=16, classes="one")
    assert source.class_names == ["image"] and source.labels.tolist() == [0, 0, 0] and not source.left_out
    assert [source.file(i)[0].removeprefix(f"{tmp_path}/") for i in range(3)] == [
        "0.PNG",
        "a/1.png",
        "a/b/2.png",
    ]
