import errno
import json
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from common.images import pil_to_tensor, read_image, to_float
from storage import files
from storage.files import (
    WriteError,
    atomic_file,
    atomic_folder,
    check_output_file,
    check_output_folder,
    require_space,
    save_png,
    write_json,
    write_yaml,
)


def test_a_full_disk_leaves_the_old_text(tmp_path, monkeypatch):
    write_yaml(tmp_path / "c.yaml", {"a": 1})

    def full(self, text, encoding=None):
        with self.open("w") as file:
            file.write(text[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError):
        write_yaml(tmp_path / "c.yaml", {"a": 2})
    assert yaml.safe_load((tmp_path / "c.yaml").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_png_keeps_every_level(tmp_path):
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_png(tmp_path / "new/folder/a.png", picture)
    assert torch.equal(pil_to_tensor(read_image(tmp_path / "new/folder/a.png")), picture)
    save_png(tmp_path / "b.png", to_float(picture))
    assert torch.equal(pil_to_tensor(read_image(tmp_path / "b.png")), picture)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", torch.zeros(3, 2, 2))

    def full(self, path, format):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError):
        save_png(tmp_path / "a.png", torch.ones(3, 2, 2))
    monkeypatch.undo()
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_space_is_looked_at_before_training(tmp_path, monkeypatch):
    require_space(tmp_path / "new", 1, "a job")
    assert not (tmp_path / "new").exists()
    usage = namedtuple("usage", "total used free")(2**30, 2**30 - 2**21, 2**21)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    require_space(tmp_path, 2**21, "a job")
    with pytest.raises(ValueError, match="output=.*: 2 MiB free, but a job needs 3 MiB"):
        require_space(tmp_path, 3 * 2**20, "a job", key="output")


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_follows_the_umask_and_makes_its_folder(tmp_path):
    mask = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "new/a.bin") as temporary:
            temporary.unlink()  # as writers do that put a file of their own in its place
            temporary.touch(0o600)
    finally:
        os.umask(mask)
    assert (tmp_path / "new/a.bin").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, writer):
    target = tmp_path / "a"
    with pytest.raises(WriteError, match=r"/a cannot be written: No space left on device$"), writer(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(WriteError, match=r"/b cannot be written: full$"),
        writer(target),
        writer(tmp_path / "b"),
    ):
        raise OSError("full")  # the innermost one is named
    with pytest.raises(KeyboardInterrupt), writer(target):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"file/a cannot be written: "), writer(tmp_path / "file/a"):
        pass


def test_a_folder_replaces_what_was_there_and_what_a_killed_job_left(tmp_path):
    for name in ("a", ".a.part", ".a.old.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "new").touch()
        assert (tmp_path / "a/old").exists()
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["a", "a/new"]


def test_a_folder_that_cannot_take_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()

    def refuse(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "replace", refuse)
    with (
        pytest.raises(WriteError, match="a cannot be written: Input/output error"),
        atomic_folder(tmp_path / "a"),
    ):
        pass
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["a", "a/old"]


def test_an_output_that_can_be_written_leaves_nothing_behind(tmp_path):
    check_output_file(tmp_path / "new" / "deep" / "result.json", begins=b"{")
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "old.json", {"a": 1})
    (tmp_path / "empty.json").touch()
    for name in ("old.json", "empty.json"):  # a result may be replaced
        check_output_file(tmp_path / name, begins=b"{")
    assert json.loads((tmp_path / "old.json").read_text()) == {"a": 1}
    check_output_folder(tmp_path / "folder" / "of" / "results")
    (tmp_path / "there").mkdir()
    check_output_folder(tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.json", "old.json", "there"]


@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
def test_an_output_below_a_file_is_refused(tmp_path, check):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for place in ("file/result.json", "file/deep/result.json"):
        with pytest.raises(
            ValueError, match=rf"out={tmp_path}/{place}: {tmp_path}/file is a file, not a folder"
        ):
            check(tmp_path / place, key="out")
    with pytest.raises(ValueError, match="link is a link to nothing, not a folder"):
        check(tmp_path / "link" / "result.json")


def test_what_is_there_and_is_no_result_is_not_replaced(tmp_path):
    save_png(tmp_path / "a.png", torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match=r"a.png exists and is a file of another kind"):
        check_output_file(tmp_path / "a.png", begins=b"{")
    with pytest.raises(ValueError, match=rf"output={tmp_path} is a folder; name a file"):
        check_output_file(tmp_path)
    with pytest.raises(ValueError, match="output=/dev/null is no ordinary file"):
        check_output_file("/dev/null")


@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
def test_a_full_or_read_only_disk_is_known_before_the_work(tmp_path, monkeypatch, check):
    def fail(code):
        def call(*_):
            raise OSError(code, os.strerror(code))

        return call

    monkeypatch.setattr(files.os, "posix_fallocate", fail(errno.ENOSPC))
    with pytest.raises(WriteError, match=rf"output={tmp_path}/new/r cannot be written: No space left"):
        check(tmp_path / "new" / "r")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("builtins.open", fail(errno.EROFS))
    with pytest.raises(WriteError, match="Read-only file system"):
        check(tmp_path / "r")


def test_a_name_that_the_disk_does_not_take_is_known_before_the_work(tmp_path):
    with pytest.raises(WriteError, match="File name too long"):
        check_output_file(tmp_path / ("a" * 250))
