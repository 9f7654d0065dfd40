"""Which members of a shard are samples, whatever writers put into a tar file."""

import gzip
import io
import json
import tarfile

import pytest

from storage import tar_samples
from storage.left_out import LeftOut
from storage.shard_paths import expand_shards, local_shards
from storage.tar_samples import read_samples


def write(path, *members: tuple[str, bytes], mode: str = "w", **options) -> None:
    with tarfile.open(path, mode, **options) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def read(tmp_path, *members: tuple[str, bytes], **options):
    write(tmp_path / "s.tar", *members)
    return read_samples(tmp_path / "s.tar", **options)


def labels(samples) -> list[int | None]:
    return [sample.label for sample in samples.found]


def test_keys_end_at_the_first_dot_and_what_that_leaves_out_is_named(tmp_path):
    members = []
    for i in range(10):
        key = f"{i:04d}" if i % 2 else f"2024.05.{i:02d}_photo"
        members += [(f"{key}.jpg", b"image"), (f"{key}.cls", b"%d" % (i % 2))]
    samples = read(tmp_path, *members)
    assert [s.name for s in samples.found] == [f"{i:04d}.jpg" for i in range(1, 10, 2)]
    assert labels(samples) == [1] * 5 and samples.left_out.counts == {tar_samples.DOTTED: 5}
    assert samples.left_out.names[tar_samples.DOTTED][0] == "2024.05.00_photo.jpg"
    named = read(tmp_path, ("sample0.input.jpg", b"image"), ("sample0.output.cls", b"1"))
    assert (
        not named.found
        and "first dot" in named.left_out.explain()
        and "sample0.input.jpg" in named.left_out.explain()
    )


def test_every_suffix_in_any_case_and_members_in_any_order(tmp_path):
    samples = read(
        tmp_path,
        ("0.CLS", b"3"),
        ("./1.TIFF", b"image"),
        ("a/0.bmp", b"image"),
        ("0.JPG", b"image"),
        ("a//0.cls", b"5"),
        ("1.Json", b'{"label": 4}'),
        ("/b/../0.jfif", b"image"),
    )
    assert [(s.name, s.label) for s in samples.found] == [
        ("./1.TIFF", 4),
        ("a/0.bmp", 5),
        ("0.JPG", 3),
        ("/b/../0.jfif", None),
    ]
    assert not samples.left_out and samples.unlabelled.counts == {tar_samples.NO_LABEL: 1}


def test_what_is_hidden_or_made_by_systems(tmp_path):
    hidden = ("._0.jpg", "__MACOSX/._0.jpg", "__MACOSX/1.jpg", "a/.thumbnails/2.jpg", ".png", ".a.jpg")
    samples = read(tmp_path, ("a/0.jpg", b"image"), *((name, b"none") for name in hidden), (".DS_Store", b""))
    assert [s.name for s in samples.found] == ["a/0.jpg"]
    assert samples.left_out.counts == {tar_samples.HIDDEN: 6}
    inside = read(tmp_path, ("home/.cache/x/0.jpg", b"image"), ("home/.cache/1.jpg", b"image"))
    assert len(inside.found) == 2 and not inside.left_out  # the archive is of a hidden folder


def test_several_images_of_one_sample(tmp_path):
    for members in (("0.png", "0.jpg"), ("0.jpg", "0.png"), ("0.jpg", "0.JPG")):
        samples = read(tmp_path, *((name, name.encode()) for name in members), ("1.jpg", b"image"))
        assert [s.name for s in samples.found] == ["0.jpg", "1.jpg"]
        assert samples.left_out.counts == {tar_samples.SECOND: 1}


def test_a_member_that_was_updated_counts_once_and_as_the_last(tmp_path):
    write(tmp_path / "s.tar", ("0.jpg", b"old"), ("0.cls", b"1"), ("1.jpg", b"image"))
    write(tmp_path / "s.tar", ("0.jpg", b"newer"), ("0.cls", b"2"), mode="a")
    samples = read_samples(tmp_path / "s.tar")
    assert [(s.name, s.size, s.label) for s in samples.found] == [("0.jpg", 5, 2), ("1.jpg", 5, None)]
    assert samples.left_out.counts == {tar_samples.REPLACED: 1} and not samples.conflicts


def test_what_no_image_belongs_to_is_named(tmp_path):
    samples = read(
        tmp_path, ("0.dng", b"x"), ("0.cls", b"1"), ("1.txt", b"text"), ("2.jpg", b"x"), ("notes.md", b"")
    )
    assert len(samples.found) == 1 and samples.left_out.counts == {tar_samples.NO_IMAGE: 2}
    assert samples.left_out.names[tar_samples.NO_IMAGE] == ["0.cls", "1.txt"]


def test_names_that_are_not_text(tmp_path):
    name = "caf\udce9/\udcff.jpg"
    write(
        tmp_path / "s.tar",
        (name, b"image"),
        (name[:-3] + "cls", b"1"),
        errors="surrogateescape",
        encoding="utf-8",
    )
    for options in (
        {"format": tarfile.GNU_FORMAT},
        {"format": tarfile.PAX_FORMAT},
        {"format": tarfile.USTAR_FORMAT},
    ):
        write(
            tmp_path / "s.tar",
            (name, b"image"),
            (name[:-3] + "cls", b"1"),
            errors="surrogateescape",
            **options,
        )
        assert [(s.name, s.label) for s in read_samples(tmp_path / "s.tar").found] == [(name, 1)]


def test_links_devices_and_files_with_holes_are_named(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (
            ("0.jpg", tarfile.LNKTYPE),
            ("1.jpg", tarfile.SYMTYPE),
            ("2.jpg", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "x.jpg"
            tar.addfile(entry)
        entry = tarfile.TarInfo("3.jpg")
        entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "3.jpg"}
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"1\n0\n\n"))
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    samples = read_samples(tmp_path / "s.tar")
    kinds = tar_samples.KINDS
    assert not samples.found and samples.left_out.counts == {
        kinds["link"]: 2,
        kinds["special"]: 1,
        kinds["sparse"]: 1,
    }


def test_joined_archives_end_where_other_readers_stop_and_the_rest_is_counted(tmp_path):
    write(tmp_path / "a.tar", ("0.jpg", b"image"), ("0.cls", b"1"))
    write(tmp_path / "b.tar", ("0.jpg", b"other"), ("0.cls", b"2"), ("1.jpg", b"other"))
    joined = tmp_path / "s.tar"
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    samples = read_samples(joined)
    assert [(s.name, s.size, s.label) for s in samples.found] == [("0.jpg", 5, 1)]
    assert samples.left_out.counts == {tar_samples.LATE: 3}
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + b"garbage" * 1000)
    assert len(read_samples(joined).found) == 1


def test_compressed_shards_are_refused_by_name(tmp_path):
    write(tmp_path / "a.tar", ("0.jpg", b"image"))
    (tmp_path / "a.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    for start, what in (
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"PK\x03\x04", "zip"),
    ):
        (tmp_path / f"{what}.tar").write_bytes(start + bytes(2000))
        with pytest.raises(ValueError, match=f"{what}.tar is not an uncompressed tar file: it is .*{what}"):
            read_samples(tmp_path / f"{what}.tar")
    with pytest.raises(
        ValueError, match=r"a.tgz is not an uncompressed tar file: it is compressed by gzip.*decompress it"
    ):
        read_samples(local_shards(tmp_path / "a.tgz")[0])
    (tmp_path / "p.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 600)
    with pytest.raises(ValueError, match="a pointer of git-lfs"):
        read_samples(tmp_path / "p.tar")


LABELS = {
    "newline": ("cls", b"7\n", 7),
    "spaces": ("cls", b" 7 \r\n", 7),
    "float": ("cls", b"7.0", 7),
    "json_in_cls": ("cls", b'{"label": 7}', None),
    "wnid": ("cls", b"n01440764", None),
    "bom": ("cls", b"\xef\xbb\xbf7", 7),
    "json_float": ("json", b'{"label": 7.0}', 7),
    "json_half": ("json", b'{"label": 3.7}', None),
    "json_true": ("json", b'{"label": true}', None),
    "json_list": ("json", b'{"label": [7]}', None),
    "json_text": ("json", b'{"label": "7"}', 7),
    "json_null": ("json", b'{"label": null, "cls": 7}', 7),
    "json_name": ("json", b'{"label": "tench", "class_id": 7}', 7),
    "json_nan": ("json", b'{"label": NaN}', None),
    "json_deep": ("json", b"[" * 100_000, None),
    "json_huge": ("json", b'{"label": ' + b"9" * 10_000 + b"}", None),
    "json_latin": ("json", b'{"label": "\xe9"}', None),
    "underscore": ("cls", b"1_0", None),
    "script": ("cls", "\uff17".encode(), None),
    "upper": ("CLS", b"7", 7),
    "index": ("index", b"7", None),
    "minus": ("cls", b"-1", None),
    "long": ("cls", b" " * 5000 + b"7", None),
    "empty": ("cls", b"", None),
}


@pytest.mark.parametrize(("ending", "content", "label"), LABELS.values(), ids=LABELS)
def test_labels_are_exact_or_named(tmp_path, ending, content, label):
    samples = read(
        tmp_path, ("0000.jpg", b"image"), (f"0000.{ending}", content), ("0001.jpg", b"x"), ("0001.cls", b"7")
    )
    assert labels(samples) == [label, 7]
    assert sum(samples.unlabelled.counts.values()) == (label is None)
    if label is None and ending == "cls":
        assert samples.unlabelled.names[tar_samples.NO_NUMBER][0].startswith("0000.cls: '")


@pytest.mark.parametrize("turn", [1, -1])
def test_labels_that_disagree_do_not_depend_on_the_order_of_members(tmp_path, turn):
    members = [("0.jpg", b"image"), ("0.cls", b"7"), ("0.json", b'{"label": "3", "width": 32}')]
    samples = read(tmp_path, *members[::turn])
    assert labels(samples) == [None] and list(samples.conflicts.names) == [tar_samples.CONFLICT]
    assert "0.cls: '7'" in samples.conflicts.names[tar_samples.CONFLICT][0]
    assert labels(read(tmp_path, *members[::turn], label_key="label")) == [3]
    agreeing = [*members[:2], ("0.json", json.dumps({"label": 7.0}).encode())]
    assert labels(read(tmp_path, *agreeing[::turn])) == [7]
    upper = read(tmp_path, *members[:2], ("0.CLS", b"8"))
    assert labels(upper) == [None] and upper.conflicts


def test_sizes_before_are_exact_too(tmp_path):
    record = b'{"label": 1, "original_height": 20.0, "original_width": 30.5}'
    sample = read(tmp_path, ("0.jpg", b"image"), ("0.json", record)).found[0]
    assert (sample.height, sample.width) == (20, 0)


def test_paths_of_shards(tmp_path):
    for name in ("b.tar", "a.TAR", "c.tgz", "._a.tar", "notes.txt"):
        (tmp_path / name).touch()
    inside = [str(tmp_path / name) for name in ("a.TAR", "b.tar", "c.tgz")]
    assert local_shards(tmp_path) == expand_shards(str(tmp_path)) == inside
    assert local_shards("x-{0..1}.tar") == ["x-0.tar", "x-1.tar"] and local_shards("x.tar.gz") == ["x.tar.gz"]
    (tmp_path / "folder.tar").mkdir()
    assert local_shards(tmp_path / "folder.tar") is None and local_shards("x.npz") is None
    with pytest.raises(ValueError, match="folder .*folder.tar holds no tar shard"):
        expand_shards([str(tmp_path / "folder.tar")])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.png").touch()
    with pytest.raises(ValueError, match="holds tar shards and images"):
        local_shards(tmp_path)


def test_nothing_is_left_out_of_a_plain_shard(tmp_path):
    samples = read(tmp_path, ("a/0.jpg", b"x"), ("a/0.cls", b"1"), ("a/0.txt", b"t"), ("a/0.seg.npy", b"y"))
    assert (
        samples.left_out == samples.unlabelled == samples.conflicts == LeftOut() and len(samples.found) == 1
    )
    assert samples.found[0].caption is not None
