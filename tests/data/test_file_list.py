import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from data.file_list import list_files
from data.source import CorruptSample
from tests.evaluator.toy import png, toy_images, write_folder, write_tars

PIXELS = toy_images(5)


def same(files, pixels):
    return all(np.array_equal(np.asarray(f.decode().image), p) for f, p in zip(files, pixels, strict=True))


def test_a_file_a_folder_and_a_tree(tmp_path):
    flat = write_folder(tmp_path / "tree" / "b", PIXELS[:3])
    write_folder(tmp_path / "tree" / "a" / "c", PIXELS[3:])
    (tmp_path / "tree" / ".hidden").mkdir()
    (tmp_path / "tree" / ".hidden" / "x.png").write_bytes(png(PIXELS[0]))
    (flat / "000001.txt").write_text(" a block\n")
    files = list_files(flat)
    assert [f.name for f in files] == ["000000.png", "000001.png", "000002.png"] and same(files, PIXELS[:3])
    assert [f.caption() for f in files] == [None, "a block", None]
    assert [f.name for f in list_files(flat / "000002.png")] == ["000002.png"]
    tree = list_files(tmp_path / "tree")
    assert [f.name for f in tree][:2] == ["a/c/000000.png", "a/c/000001.png"] and tree[
        2
    ].name == "b/000000.png"
    assert same(tree, [*PIXELS[3:], *PIXELS[:3]]) and tree[0].size() == (16, 16)


def test_captions_are_text(tmp_path):
    folder = write_folder(tmp_path / "a", PIXELS[:2])
    (folder / "000000.txt").write_bytes(b"\xef\xbb\xbfein Haus\r\n")
    (folder / "000001.txt").write_bytes(b"caf\xe9")
    first, second = list_files(folder)
    assert first.caption() == "ein Haus"
    with pytest.raises(CorruptSample, match="000001.png: its caption is not UTF-8"):
        second.caption()


def test_what_a_folder_holds_besides_is_counted(tmp_path, capsys):
    write_folder(tmp_path / "a", PIXELS)
    (tmp_path / "a" / "x.dng").touch()
    (tmp_path / "a" / ".x.png").touch()
    assert len(list_files(tmp_path)) == 5
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 2 and said[1] == f"warning: {tmp_path}: 1 left out, not an image by its suffix: a/x.dng"
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.dng").touch()
    with pytest.raises(
        ValueError, match=r"holds no image \(.*\) \(1 left out, not an image by its suffix: x.dng\)"
    ):
        list_files(tmp_path / "none")


def test_images_inside_shards(tmp_path):
    pattern = write_tars(tmp_path, PIXELS, labels=True)
    before = sorted(tmp_path.iterdir())
    files = list_files(pattern)
    assert [f.name for f in files] == [f"{i // 3}/{i:06d}.png" for i in range(5)] and same(files, PIXELS)
    assert files[4].size() == (16, 16) and files[4].caption() is None
    assert sorted(tmp_path.iterdir()) == before, "a program that only looks leaves nothing behind"
    assert [f.name for f in list_files(tmp_path / "1.tar")] == ["1/000003.png", "1/000004.png"]


def test_captions_and_folders_of_shards(tmp_path):
    pattern = write_tars(tmp_path / "a", PIXELS)
    with tarfile.open(tmp_path / "a" / "0.tar", "a") as tar:
        member = tarfile.TarInfo("000001.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"Haus"))
    files = list_files(tmp_path / "a")
    assert [f.name for f in files] == [f.name for f in list_files(pattern)] and len(files) == 5
    assert [f.caption() for f in files] == [None, "Haus", None, None, None]
    (tmp_path / "a" / "x.png").write_bytes(png(PIXELS[0]))
    with pytest.raises(ValueError, match="a holds tar shards and images; name the shards by a pattern"):
        list_files(tmp_path / "a")


def test_what_is_not_there_or_no_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is neither"):
        list_files(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no image"):
        list_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="0.tar does not exist"):
        list_files(tmp_path / "{0..1}.tar")
    (tmp_path / "bad.png").write_bytes(b"no image")
    wide = Image.new("RGB", (30, 20))
    wide.save(tmp_path / "wide.png")
    bad, good = list_files(tmp_path)
    assert good.size() == (30, 20)
    for read in (bad.size, bad.decode):
        with pytest.raises(CorruptSample, match="bad.png"):
            read()
