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


def header(
    name: bytes, kind: bytes, size: int = 0, *, number: bytes | None = None, rest: bytes = b""
) -> bytes:
    """A ustar header, with a size field of one's own choice, and `rest` from byte 386 on."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = number or b"%011o\0" % size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[386 : 386 + len(rest)] = rest
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def entries(path, *blocks: bytes):
    path.write_bytes(b"".join(blocks) + bytes(1024))
    with TarReader(path) as tar:
        return list(tar.entries())


def pax(*records: tuple[bytes, bytes]) -> bytes:
    content = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = next(n for n in range(10_000) if len(b"%d" % n) + len(rest) == n)
        content += b"%d" % length + rest
    return header(b"pax", b"x", len(content)) + padded(content)


def test_notes_on_a_member_survive_other_notes_and_end_with_it(tmp_path):
    long = b"a" * 150 + b".jpg"
    found = entries(
        tmp_path / "a.tar",
        header(b"././@LongLink", b"L", len(long)) + padded(long),
        header(b"././@LongLink", b"K", 200) + padded(b"b" * 200),
        header(b"pax_global_header", b"g", 17) + padded(b"17 comment=hallo\n"),
        header(b"short.jpg", b"0", 3) + padded(b"abc"),
        pax((b"path", b"caf\xe9/x.jpg"), (b"size", b"5")),
        header(b"short.jpg", b"0", 0) + padded(b"12345"),
        pax((b"path", b"a folder/")),
        header(b"folder", b"5"),
        header(b"next.jpg", b"7", 2) + padded(b"12"),
    )
    assert [(entry.name, entry.size) for entry in found] == [
        (long.decode(), 3),
        ("caf\udce9/x.jpg", 5),
        ("next.jpg", 2),
    ]


def test_entries_without_content_may_say_how_large_something_is(tmp_path):
    found = entries(
        tmp_path / "a.tar",
        header(b"folder", b"5", 4096),
        header(b"folder of the oldest writers/", b"\0"),
        header(b"link", b"1", 5000),
        header(b"with content", b"1", 5) + padded(b"12345"),
        header(b"device", b"3", 99),
        header(b"a.jpg", b"0", 3) + padded(b"abc"),
    )
    kinds = [(entry.name, entry.kind) for entry in found]
    assert kinds == [("link", "link"), ("with content", "link"), ("device", "special"), ("a.jpg", "file")]


def test_files_with_holes_are_passed_over(tmp_path):
    more = bytes(504) + b"\1" + bytes(7)
    found = entries(
        tmp_path / "a.tar",
        header(b"gnu", b"S", 600, rest=bytes(96) + b"\1") + more + bytes(512) + padded(b"x" * 600),
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.name", b"real.jpg")),
        header(b"GNUSparseFile.0/real.jpg", b"0", 3) + padded(b"abc"),
        header(b"a.jpg", b"0", 3) + padded(b"abc"),
    )
    assert [(e.name, e.kind) for e in found] == [("gnu", "sparse"), ("real.jpg", "sparse"), ("a.jpg", "file")]


def test_sizes_in_base_256_and_signed_checksums(tmp_path):
    found = entries(
        tmp_path / "a.tar", header(b"a", b"0", number=b"\x80" + bytes(10) + b"\3") + padded(b"abc")
    )
    assert [entry.size for entry in found] == [3]
    block = bytearray(header("ä".encode(), b"0"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    assert [entry.name for entry in entries(tmp_path / "a.tar", bytes(block))] == ["ä"]


@pytest.mark.parametrize(
    "damage",
    [
        header(b"a", b"0", number=b"-0000001000\0"),  # a loop without an end, if it were taken for a number
        header(b"a", b"0", number=b"0000001_000\0"),
        header(b"a", b"0", number=b"\xff" * 12),
        header(b"pax", b"x", 8) + padded(b"0 a=b\n\n\n"),
        header(b"pax", b"x", 8) + padded(b"99 a=bcd"),
        header(b"pax", b"x", 8) + padded(b"no pax h"),
        pax((b"size", b"1_0")) + header(b"a", b"0"),
        header(b"pax", b"x", 1 << 25) + bytes(1 << 25),
    ],
)
def test_damage_is_named_and_never_a_loop(tmp_path, damage):
    whole = header(b"first", b"0", 3) + padded(b"abc")
    with pytest.raises(ValueError, match=r"shard .*a.tar is (damaged at byte 1024|cut short)"):
        entries(tmp_path / "a.tar", whole, damage)


def test_what_follows_the_end_mark_is_marked(tmp_path):
    one = header(b"a.jpg", b"0", 3) + padded(b"abc")
    found = entries(tmp_path / "a.tar", one, bytes(1024), one, b"garbage" * 512)
    assert [entry.late for entry in found] == [False, True]
    with TarReader(tmp_path / "a.tar") as tar:
        assert list(tar.members()) == [("a.jpg", 512, 3)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_of_megabytes_is_refused(tmp_path, form):
    """An index has room for the longest name in every row: one such name and many members would fill the memory."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        tar.addfile(tarfile.TarInfo("x" * 4097))
    with TarReader(path) as tar, pytest.raises(ValueError, match="x.tar is damaged .*more than 4096 bytes"):
        list(tar.entries())
