"""Train and validation: versions of a picture on one side, every class on both, the same on every machine."""

import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest

from data.image_list import ImageList
from data.splitting import split_images
from storage import image_tree
from tests.data.test_near_duplicates import scene


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Three classes of 20, 12 and 6 pictures; five of the first are there in two versions."""
    root = tmp_path_factory.mktemp("album")
    for number, (name, count) in enumerate({"2023": 20, "Garden": 12, "two, three": 6}.items()):
        (root / name / "deep").mkdir(parents=True)
        for i in range(count):
            scene(100 * number + i).save(root / name / ("deep" if i % 2 else "") / f"{i:02}.PNG")
    for i in range(5):
        scene(i).resize((60, 60)).save(root / "2023" / f"copy_{i}.jpg", quality=60)
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._00.PNG").write_bytes(b"x")
    (root / "nothing").mkdir()
    (root / "2023" / "IMG_1.MOV").write_bytes(b"x")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "Garden" / "broken.jpg").write_bytes(b"no image")
    return root


def test_versions_are_on_one_side_and_every_class_on_both(album, tmp_path):
    split = split_images(album, share=0.2)
    assert split.class_names == ["2023", "Garden", "two, three"] and len(split.paths) == 43
    sides = dict(zip(split.paths, split.held_out.tolist(), strict=True))
    for i in range(5):
        deep = "deep/" if i % 2 else ""
        assert sides[f"2023/copy_{i}.jpg"] == sides[f"2023/{deep}{i:02}.PNG"]
    counts = np.bincount(split.labels[split.held_out])
    assert counts.tolist() == [5, 2, 1]
    assert (
        "10 images are nearly the same as another one, in 5 groups; each group is on one side"
        in split.lines()
    )
    assert split.left_out.lines("x") == [
        "x: 1 left out, hidden, or made by an operating system: __MACOSX/",
        "x: 1 left out, a video: 2023/IMG_1.MOV",
        "x: 1 left out, not a readable image: Garden/broken.jpg",
    ]
    train, validation = (
        ImageList(path=path, images=split.root, class_names=split.class_names, image_size=16)
        for path in split.write(tmp_path)
    )
    assert len(train) == 35 and len(validation) == 8 and train.class_names == validation.class_names
    assert not set(train._files) & set(validation._files)
    assert train.class_counts() == {"2023": 20, "Garden": 10, "two, three": 5}


def test_the_order_of_the_file_system_and_the_place_change_nothing(album, tmp_path, monkeypatch):
    first = split_images(album, workers=1)
    moved = shutil.copytree(album, tmp_path / "moved")
    listing = os.scandir

    @contextmanager
    def backwards(place):
        with listing(place) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(image_tree.os, "scandir", backwards)
    second = split_images(moved, workers=3)
    assert first.paths == second.paths and (first.held_out == second.held_out).all()
    assert first.class_names == second.class_names and (first.labels == second.labels).all()
    assert (split_images(album, seed=1).held_out != first.held_out).any()


def test_which_images_are_held_out_is_fixed(album):
    split = split_images(album, share=0.1)
    held_out = [path for path, side in zip(split.paths, split.held_out, strict=True) if side]
    assert held_out == ["2023/18.PNG", "2023/deep/11.PNG", "Garden/deep/11.PNG", "two, three/deep/01.PNG"]


def test_one_class_of_all_albums_and_of_a_flat_folder(album, tmp_path):
    whole = split_images(album, classes="one", most=3)
    assert whole.class_names == ["image"] and int(whole.held_out.sum()) == 3
    for i in range(8):
        scene(i).save(tmp_path / f"{i}.png")
    flat = split_images(tmp_path)
    assert flat.class_names == ["image"] and len(flat.paths) == 8 and int(flat.held_out.sum()) == 1


def test_images_beside_the_albums_have_no_class(album, tmp_path):
    folder = shutil.copytree(album, tmp_path / "album")
    scene(7).save(folder / "loose.png")
    split = split_images(folder)
    assert "loose.png" not in split.paths
    assert split.left_out.counts["beside the class folders, so of no class"] == 1


def test_a_list_is_split_with_its_captions(tmp_path):
    (tmp_path / "pictures").mkdir()
    rows = []
    for i in range(10):
        scene(i).save(tmp_path / "pictures" / f"{i}.png")
        rows += [f'{i}.png,"number {i}, first"', f"{i}.png,number {i} again"]
    (tmp_path / "captions.csv").write_text("\n".join(["file_name,text", *reversed(rows)]))
    split = split_images(tmp_path / "captions.csv", root=tmp_path / "pictures", share=0.2)
    assert len(split.paths) == 20 and int(split.held_out.sum()) == 4
    assert len(set(np.array(split.paths)[split.held_out])) == 2
    train, validation = split.write(tmp_path / "out")
    source = ImageList(path=validation, images=split.root, image_size=16, captions=True)
    name = os.fsdecode(source._files[0])
    assert source.captions([0])[0].startswith(f"number {name[0]}")
    assert len(ImageList(path=train, images=split.root, image_size=16)) == 16


def test_a_burst_larger_than_the_share_leaves_the_class_on_both_sides(tmp_path):
    for name, seeds in {"a": [1] * 4 + [2] * 2, "b": [3] * 6}.items():
        (tmp_path / name).mkdir()
        for i, seed in enumerate(seeds):
            scene(seed).resize((60 + i, 60 + i)).save(tmp_path / name / f"{i}.png")
    split = split_images(tmp_path)
    held_out = [path for path, side in zip(split.paths, split.held_out, strict=True) if side]
    assert held_out == ["a/4.png", "a/5.png"]  # all of b are one picture, which is trained on


def test_what_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        split_images(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no image"):
        split_images(tmp_path)
    for i in range(3):
        scene(1).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="3 images that are all nearly the same"):
        split_images(tmp_path)
    with pytest.raises(ValueError, match="share=0 must be between"):
        split_images(tmp_path, share=0)
    with pytest.raises(ValueError, match="classes='two' is unknown"):
        split_images(tmp_path, classes="two")
    for file in tmp_path.iterdir():
        file.write_bytes(b"x")
    with pytest.raises(ValueError, match="no image that can be read"):
        split_images(tmp_path)
