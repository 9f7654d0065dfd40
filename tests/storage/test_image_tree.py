"""Which files below a folder are images, whatever a file system allows."""

import os
from pathlib import Path

import pytest
from PIL import Image

from common.image_formats import missing_reader
from storage.image_names import IMAGE_SUFFIXES
from storage.image_tree import CIRCLE, HIDDEN, NO_FILE, OTHER_FILE, SPECIAL, find_images


def put(path: str | Path, size=(4, 4), **options) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)


def test_all_still_pictures_that_pillow_reads_are_images(tmp_path):
    readable = [ending for ending in IMAGE_SUFFIXES if not missing_reader(ending)]
    formats = Image.registered_extensions()
    for ending in IMAGE_SUFFIXES:
        if missing_reader(ending):
            assert ending in (".avif", ".heic", ".heif")
            continue
        assert ending in formats
        (tmp_path / f"a{ending}").touch()
        (tmp_path / f"b{ending.upper()}").touch()
    (tmp_path / "c.Jpeg").touch()
    tree = find_images(tmp_path)
    assert len(tree.files) == 2 * len(readable) + 1 and tree.files == sorted(tree.files) and not tree.left_out


def test_what_is_hidden_or_made_by_systems_is_left_out_at_any_depth(tmp_path):
    for name in (
        "cat/0.png",
        "cat/.ipynb_checkpoints/0.png",
        "dog/deep/.thumbnails/0.png",
        ".Trash-1000/0.png",
    ):
        put(tmp_path / name)
    for name in (
        "__MACOSX/cat/0.png",
        "dog/@eaDir/0.png",
        "lost+found/0.png",
        "dog/deep/1.png",
        "cat/._0.png",
    ):
        put(tmp_path / name)
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    tree = find_images(tmp_path)
    assert tree.files == ["cat/0.png", "dog/deep/1.png"] and tree.folders == ["cat", "dog"]
    assert tree.left_out.counts == {HIDDEN: 7}
    assert tree.left_out.names[HIDDEN] == [".Trash-1000/", "__MACOSX/", "lost+found/"]


def test_a_hidden_folder_may_be_asked_for_by_name(tmp_path):
    put(tmp_path / ".cache" / "a.png")
    assert find_images(tmp_path / ".cache").files == ["a.png"]


def test_files_that_people_may_take_for_images_are_named(tmp_path):
    for name in (
        "a.dng",
        "b.jpg.bak",
        "c",
        "d.png~",
        "e.psd",
        "f.jpg?v=3",
        "notes.txt",
        "labels.CSV",
        "README.md",
    ):
        (tmp_path / name).touch()
    tree = find_images(tmp_path)
    assert tree.files == [] and tree.left_out.counts == {OTHER_FILE: 6}


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "outside" / "deep" / "b.png")
    put(tmp_path / "set" / "cat" / "a.png")
    (tmp_path / "set" / "dog").symlink_to("../outside")
    (tmp_path / "set" / "cat" / "again.png").symlink_to("a.png")
    (tmp_path / "set" / "cat" / "up").symlink_to("..")
    (tmp_path / "outside" / "deep" / "top").symlink_to(tmp_path / "set")
    tree = find_images(tmp_path / "set")
    assert tree.files == ["cat/a.png", "cat/again.png", "dog/deep/b.png"]
    assert tree.left_out.counts == {CIRCLE: 2} and tree.left_out.names[CIRCLE] == ["cat/up", "dog/deep/top"]
    (tmp_path / "set" / "owl").symlink_to("cat")  # a class of the same images is a choice
    assert "owl/a.png" in find_images(tmp_path / "set").files


def test_what_cannot_be_opened_or_would_be_waited_for_is_left_out(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "pipe.png")
    tree = find_images(tmp_path)
    assert tree.files == ["a.png"] and tree.left_out.counts == {NO_FILE: 2, SPECIAL: 1}


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    put(tmp_path / "cat.png" / "a.png")
    assert find_images(tmp_path) == (["cat.png/a.png"], ["cat.png"], find_images(tmp_path).left_out)


def test_names_need_not_be_text(tmp_path):
    for name in (b"caf\xe9/\xff.png", b"caf\xe9/a\nb.png", "katze 猫/ä.png".encode()):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
    tree = find_images(tmp_path)
    assert [os.fsencode(name) for name in tree.files] == [
        b"caf\xe9/a\nb.png",
        b"caf\xe9/\xff.png",
        "katze 猫/ä.png".encode(),
    ]


def test_folders_that_cannot_be_listed_are_errors(tmp_path, monkeypatch):
    put(tmp_path / "cat" / "a.png")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match="folder .*cat cannot be read: Permission denied"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="image folder .*nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="a.png is not a folder"):
        find_images(tmp_path / "cat" / "a.png")
