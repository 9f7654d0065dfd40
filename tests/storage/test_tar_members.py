"""Headers of tar files are read in blocks, many files by threads."""

import io
import os
import tarfile
import threading

import pytest

from storage.tar_members import TarReader, read_at, read_shards


def write(path, sizes):
    with tarfile.open(path, "w") as tar:
        for number, size in enumerate(sizes):
            member = tarfile.TarInfo(f"{number:06d}.bin")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes([number % 256]) * size))


def test_small_members_share_a_request(tmp_path, monkeypatch):
    write(tmp_path / "a.tar", [700] * 2000)  # 3 MiB
    requests, real = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *place: requests.append(place) or real(*place))
    with TarReader(tmp_path / "a.tar") as tar:
        found = list(tar.members())
        assert [tar.read(offset, 1)[0] for _, offset, _ in found[-3:]] == [(1997 + i) % 256 for i in range(3)]
    assert len(found) == 2000 and len(requests) <= 5


def test_large_members_are_skipped(tmp_path, monkeypatch):
    write(tmp_path / "a.tar", [5 << 20] * 3)
    read, real = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *place: read.append(len(real(*place))) or real(*place))
    with TarReader(tmp_path / "a.tar") as tar:
        assert [size for _, _, size in tar.members()] == [5 << 20] * 3
    assert sum(read) < 5 << 20


def test_a_read_that_gives_less_goes_on(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: real(file, min(size, 7), offset))
    with open(tmp_path / "a", "rb") as file:
        assert read_at(file.fileno(), 10, 100) == bytes(range(10, 110))
        assert read_at(file.fileno(), 190, 100) == bytes(range(190, 200))


def test_shards_are_read_side_by_side_in_order():
    together = threading.Barrier(3, timeout=60)

    def read(number: int) -> int:
        if number < 3:
            together.wait()  # passes only if three are read at a time
        return number * number

    assert list(read_shards(read, range(200))) == [n * n for n in range(200)]
    with pytest.raises(ZeroDivisionError):
        list(read_shards(lambda n: 1 // (n - 2), range(5)))


def test_a_tar_file_inside_a_tar_file(tmp_path):
    def packed(contents: dict[str, bytes]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return file.getvalue()

    inner = packed({"1.jpg": b"one", "2.jpg": b"second"})
    (tmp_path / "whole.tar").write_bytes(packed({"n01.tar": inner, "n02.tar": inner}))
    with TarReader(tmp_path / "whole.tar") as tar:
        for _, start, size in list(tar.members()):
            found = [
                (name, tar.read(offset, size)) for name, offset, size in tar.members(start, start + size)
            ]
            assert found == [("1.jpg", b"one"), ("2.jpg", b"second")]
    cut = inner[: 4 * 512]  # the blocks of zeros are missing; other members follow
    (tmp_path / "cut.tar").write_bytes(packed({"n01.tar": cut, "n02.tar": inner}))
    with TarReader(tmp_path / "cut.tar") as tar, pytest.raises(ValueError, match="cut.tar is cut short"):
        _, start, size = next(tar.members())
        list(tar.members(start, start + size))
