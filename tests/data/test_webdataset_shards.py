"""Tar shards: indexing, labels, captions, limits of size, random access, damaged shards."""

import builtins
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from data.loaders import eval_loader, train_loader
from data.source import CorruptSample, count_classes
from data.tar_index import make_index
from data.webdataset_shards import WebDataset
from storage.shard_paths import expand_shards


def image_bytes(value: int, ending: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (value, value, value)).save(file, format={"jpg": "JPEG"}.get(ending, ending))
    return file.getvalue()


def write_shard(path, contents: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> None:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(values: range) -> dict[str, bytes]:
    contents = {}
    for value in values:
        contents[f"{value:08d}.cls"] = str(value % 3).encode()
        contents[f"{value:08d}.jpg"] = image_bytes(value, "jpg")
    return contents


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        write_shard(tmp_path / f"train-{shard:04d}.tar", samples(range(10 * shard, 10 * shard + 4)))
    return str(tmp_path / "train-{0000..0002}.tar")


def values(source) -> list[int]:
    return [
        round(source.load(i, np.random.default_rng(0))[0].float().mean().item()) for i in range(len(source))
    ]


def test_brace_patterns_name_shards():
    assert expand_shards(["a-{08..10}.tar", "b.tar"]) == [
        "a-08.tar",
        "a-09.tar",
        "a-10.tar",
        "b.tar",
    ]
    with pytest.raises(ValueError, match="braces"):
        expand_shards("a-{0..3.tar")


def test_samples_are_read_at_any_position(shards):
    source = WebDataset(path=shards, image_size=8)
    assert values(source) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert source.labels.tolist() == [v % 3 for v in values(source)]
    assert source.class_names == ["0", "1", "2"]
    assert values(source)[::-1] == [values(source)[i] for i in range(11, -1, -1)]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_tar_format(tmp_path, tar_format):
    folder = "a" * 60 + "/" + "b" * 60
    contents = {f"{folder}/ä.x.png": image_bytes(1), "plain.webp": image_bytes(2, "webp"), "other.txt": b"12"}
    contents |= {f"{folder}/ä.png": image_bytes(3), f"{folder}/ä.json": b'{"label": 7}'}
    if tar_format != tarfile.USTAR_FORMAT:
        contents["c" * 180 + ".png"] = image_bytes(4)
    write_shard(tmp_path / "s.tar", contents, tar_format)
    index = make_index(tmp_path / "s.tar")
    with tarfile.open(tmp_path / "s.tar") as tar:
        wanted = [(n, tar.getmember(n).offset_data, tar.getmember(n).size) for n in contents]
    wanted = [w for w in wanted if w[0] not in (f"{folder}/ä.x.png", "other.txt", f"{folder}/ä.json")]
    found = [(os.fsdecode(n), o, s) for n, o, s in zip(index.names, index.offsets, index.sizes, strict=True)]
    assert sorted(found) == sorted(wanted)
    assert dict(zip((n for n, _, _ in found), index.labels.tolist(), strict=True))[f"{folder}/ä.png"] == 7


@pytest.mark.parametrize(
    ("record", "key", "label"),
    [
        ({"label": 4}, None, 4),
        ({"cls": 5, "id": 1}, None, 5),
        ({"class_id": "6"}, None, 6),
        ({"y": 7}, "y", 7),
    ],
)
def test_labels_from_json(tmp_path, record, key, label):
    write_shard(tmp_path / "s.tar", {"a.png": image_bytes(1), "a.json": json.dumps(record).encode()})
    source = WebDataset(path=str(tmp_path / "s.tar"), image_size=8, label_key=key, num_classes=9)
    assert source.labels.tolist() == [label] and len(source.class_names) == 9


def test_index_is_kept_beside_the_shard_and_made_anew_when_it_changes(tmp_path, shards, monkeypatch):
    WebDataset(path=shards, image_size=8)
    assert (tmp_path / "train-0001.tar.index").is_file()
    monkeypatch.setattr("data.tar_index.make_index", lambda *args, **kwargs: pytest.fail("indexed again"))
    assert len(WebDataset(path=shards, image_size=8)) == 12
    monkeypatch.undo()
    write_shard(tmp_path / "train-0001.tar", samples(range(50, 57)))
    assert len(WebDataset(path=shards, image_size=8)) == 15
    (tmp_path / "train-0002.tar.index").write_bytes(b"damaged")
    assert len(WebDataset(path=shards, image_size=8)) == 15


def test_index_goes_to_the_cache_folder_when_the_shard_folder_is_read_only(tmp_path, shards, monkeypatch):
    from data import tar_index

    def refuse(path):
        if path.parent == tmp_path:
            raise PermissionError(f"{path} is read-only")
        return whole(path)

    whole = tar_index.atomic_file
    monkeypatch.setattr(tar_index, "atomic_file", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    WebDataset(path=shards, image_size=8)
    assert not list(tmp_path.glob("*.index")) and len(list((tmp_path / "cache").rglob("*.index"))) == 3
    monkeypatch.setattr(tar_index, "make_index", lambda *args, **kwargs: pytest.fail("indexed again"))
    assert len(WebDataset(path=shards, image_size=8)) == 12


@pytest.mark.parametrize("part", [0.5, 0.999, "boundary", "members"])
def test_shard_cut_short_is_found_before_any_work(tmp_path, shards, part):
    shard = tmp_path / "train-0001.tar"
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        third, last = tar.getmembers()[2], tar.getmembers()[-1]
    ends = {"boundary": third.offset, "members": last.offset_data + -(-last.size // 512) * 512}
    shard.write_bytes(content[: ends.get(part) or int(len(content) * part)])
    if part == 0.999:  # the zeros after the end mark are no loss
        shard.write_bytes(content[: last.offset_data + 100])
    reason = "a member reaches to byte" if part == 0.999 else ""
    with pytest.raises(ValueError, match=f"shard .*train-0001.tar is cut short.*{reason}"):
        WebDataset(path=shards, image_size=8)


def test_unusable_shards_are_named(tmp_path, shards):
    (tmp_path / "train-0002.tar").unlink()
    with pytest.raises(FileNotFoundError, match="train-0002.tar does not exist"):
        WebDataset(path=shards, image_size=8)
    (tmp_path / "text.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match="text.tar is not an uncompressed tar file"):
        WebDataset(path=str(tmp_path / "text.tar"), image_size=8)
    write_shard(tmp_path / "empty.tar", {})
    with pytest.raises(ValueError, match="empty.tar holds no images"):
        WebDataset(path=str(tmp_path / "empty.tar"), image_size=8)
    write_shard(tmp_path / "plain.tar", {"a.png": image_bytes(1), "b.png": image_bytes(2)})
    with pytest.raises(ValueError, match="plain.tar has no labels.*; num_classes=1 does without"):
        WebDataset(path=str(tmp_path / "plain.tar"), image_size=8)
    with pytest.raises(ValueError, match="00000002.jpg has label 2, but there are 2 classes"):
        WebDataset(path=str(tmp_path / "train-0000.tar"), image_size=8, num_classes=2)


def test_images_of_one_class_need_no_labels(tmp_path, shards):
    assert not WebDataset(path=shards, image_size=8, num_classes=1).labels.any()
    write_shard(tmp_path / "plain.tar", {"a.png": image_bytes(1), "b.png": image_bytes(2)})
    source = WebDataset(path=str(tmp_path / "plain.tar"), image_size=8, num_classes=1)
    assert source.labels.tolist() == [0, 0] and source.class_names == ["0"]
    assert [source.load(i, np.random.default_rng(0))[1] for i in range(2)] == [0, 0]


def test_a_shard_is_opened_once_for_all_its_samples(shards, monkeypatch):
    source, opened = WebDataset(path=shards, image_size=8), []

    def noting(real):
        def call(path, *arguments, **options):
            opened.append(str(path))
            return real(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "open", noting(os.open))
    monkeypatch.setattr(builtins, "open", noting(open))
    for _ in range(2):
        assert len(values(source)) == 12
    assert sorted(path for path in opened if path.endswith(".tar")) == list(expand_shards(shards))


def test_corrupt_members_are_skipped_and_named(tmp_path):
    contents = samples(range(6))
    contents["00000002.jpg"] = contents["00000002.jpg"][:100]
    contents["00000004.cls"] = b"four"
    write_shard(tmp_path / "s.tar", contents)
    source = WebDataset(path=str(tmp_path / "s.tar"), image_size=8)
    for index, name in ((2, "s.tar: 00000002.jpg"), (4, "s.tar: 00000004.jpg: no readable label")):
        with pytest.raises(CorruptSample, match=name):
            source.load(index, np.random.default_rng(0))
    batch = next(iter(train_loader(source, seed=0, batch_size=6)))
    assert len(batch["skipped"]) == 2 and (batch["labels"] >= 0).all()
    batches = list(eval_loader(source, batch_size=4))
    assert [p for b in batches for p in b["positions"].tolist()] == [0, 1, 3, 5]


def test_a_number_that_is_no_class_takes_no_memory():
    where = "0.tar: 1.jpg"
    with pytest.raises(ValueError, match=r"0.tar: 1.jpg has label 2147483647, too large .* num_classes="):
        count_classes(None, None, largest=2**31 - 1, where=lambda: where)
    assert count_classes(2**31, None, largest=2**31 - 1, where=lambda: where) == 2**31
    assert count_classes(None, None, largest=6, where=lambda: where) == 7
    assert count_classes(None, ["a", "b"], largest=1, where=lambda: where) == 2
    with pytest.raises(ValueError, match="class_names has 2 names, but num_classes=3"):
        count_classes(3, ["a", "b"], largest=1, where=lambda: where)


@pytest.mark.parametrize("turn", [1, -1])
def test_labels_that_disagree_are_an_error_that_names_the_sample(tmp_path, turn):
    contents = samples(range(6))
    contents["00000002.json"] = b'{"label": "1", "width": 32}'
    write_shard(tmp_path / "s.tar", dict(list(contents.items())[::turn]))
    path = str(tmp_path / "s.tar")
    with pytest.raises(
        ValueError,
        match=r"labels of 1 samples disagree, first those of s.tar: 00000002.jpg \(.*.cls: '2'.*label \"1\"\)",
    ):
        WebDataset(path=path, image_size=8)
    assert len(WebDataset(path=path, image_size=8, num_classes=1)) == 6
    chosen = WebDataset(path=path, image_size=8, label_key="label")
    assert (chosen.labels != -1).sum() == 1 and chosen.labels.max() == 1
    with pytest.raises(ValueError, match="has no labels: expected .json members with other; num_classes=1"):
        WebDataset(path=path, image_size=8, label_key="other")


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_left_out_is_remembered_with_the_index(tmp_path, keep):
    contents = samples(range(4))
    contents |= {"0000.1.jpg": image_bytes(9), "caf\udce9.jpg": image_bytes(7), "caf\udce9.cls": b"3.7"}
    with tarfile.open(tmp_path / "s.tar", "w", errors="surrogateescape") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for _ in range(2):
        source = WebDataset(path=str(tmp_path / "s.tar"), image_size=8, keep_index=keep)
        first, second = source.left_out.lines("x")
        assert first.startswith("x: 1 left out, a key ends at the first dot") and first.endswith(
            "s.tar: 0000.1.jpg"
        )
        assert second == "x: 1 left out, a label that is no whole number from 0: s.tar: caf\\xe9.cls: '3.7'"
        assert len(source) == 5 and source.name(4).endswith("s.tar: caf\udce9.jpg")
    write_shard(tmp_path / "s.tar", {"a.jpg": image_bytes(1), "caf.jpg": image_bytes(1), "caf.cls": b"3.7"})
    with pytest.raises(ValueError, match="s.tar has no labels.*caf.*'3.7'"):
        WebDataset(path=str(tmp_path / "s.tar"), image_size=8, keep_index=keep)


def test_limits_count_what_they_leave_out(tmp_path):
    write_shard(
        tmp_path / "s.tar", captioned(range(3), original_height=20, original_width=90) | samples(range(7, 9))
    )
    source = WebDataset(path=str(tmp_path / "s.tar"), image_size=8, captions=True, min_side=50)
    assert len(
        source
    ) == 3 and "x: 2 left out, not within max_aspect=None, min_side=50" in source.left_out.lines("x")


def test_captions_may_begin_with_a_mark(tmp_path):
    write_shard(tmp_path / "s.tar", {"a.png": image_bytes(1), "a.txt": b"\xef\xbb\xbfHaus\r\n"})
    assert WebDataset(path=str(tmp_path / "s.tar"), image_size=8, captions=True).captions([0]) == ["Haus"]


def captioned(values: range, **sides) -> dict[str, bytes]:
    contents = {}
    for value in values:
        contents[f"{value:04d}.txt"] = f" Bild Nr. {value} \u00e4\n".encode()
        contents[f"{value:04d}.png"] = image_bytes(value)
        contents[f"{value:04d}.json"] = json.dumps({"uid": str(value), **sides}).encode()
    return contents


def test_captions_follow_their_images_through_loaders_and_resume(tmp_path):
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", captioned(range(10 * shard, 10 * shard + 5)))
    source = WebDataset(path=str(tmp_path / "{0..1}.tar"), image_size=8, captions=True)
    assert source.has_captions and source.class_names == ["image"] and source.class_counts() == {"image": 10}

    def shown(batch):
        values = batch["images"][:, 0, 0, 0].tolist()
        assert batch["captions"] == [f"Bild Nr. {value} \u00e4" for value in values]
        assert batch["labels"].tolist() == [0] * len(values) and not batch["skipped"]
        return values

    assert [v for b in eval_loader(source, batch_size=4) for v in shown(b)] == values(source)
    batches = iter(train_loader(source, seed=1, batch_size=4))
    run = [shown(next(batches)) for _ in range(6)]
    assert sorted(sum(run, [])[:10]) == values(source)
    resumed = iter(train_loader(source, seed=1, batch_size=4, start_step=3, num_workers=1))
    assert [shown(next(resumed)) for _ in range(3)] == run[3:]


def test_captions_are_delivered_only_on_demand(tmp_path, shards):
    write_shard(tmp_path / "s.tar", captioned(range(3), label=2))
    source = WebDataset(path=str(tmp_path / "s.tar"), image_size=8)
    assert "captions" not in next(iter(eval_loader(source, batch_size=3)))
    with pytest.raises(ValueError, match="WebDataset has no captions"):
        source.captions([0])
    labelled = WebDataset(path=str(tmp_path / "s.tar"), image_size=8, captions=True)
    assert labelled.labels.tolist() == [2, 2, 2] and labelled.class_names == ["0", "1", "2"]
    with pytest.raises(ValueError, match="has no captions: expected .txt members"):
        WebDataset(path=shards, image_size=8, captions=True)


def test_samples_without_a_readable_caption_are_skipped_and_named(tmp_path):
    contents = captioned(range(6))
    del contents["0001.txt"]
    contents["0004.txt"] = b"\xff\xfe\xff"
    write_shard(tmp_path / "s.tar", contents)
    source = WebDataset(path=str(tmp_path / "s.tar"), image_size=8, captions=True)
    (batch,) = list(eval_loader(source, batch_size=6))
    assert batch["positions"].tolist() == [0, 2, 3, 5] and len(batch["captions"]) == 4
    assert [name.split(": ", 1)[1] for name in batch["skipped"]] == [
        "0001.png: no caption",
        "0004.png: its caption is not UTF-8",
    ]
    batch = next(iter(train_loader(source, seed=0, batch_size=6)))
    assert batch["captions"] == [f"Bild Nr. {v} \u00e4" for v in batch["images"][:, 0, 0, 0].tolist()]
    assert len(batch["skipped"]) == 2 and len(batch["captions"]) == 6


def test_limits_of_size_and_shape_are_those_of_the_original_image(tmp_path):
    sides = [
        (256, 256),
        (128, 256),
        (256, 128),
        (127, 256),
        (255, 255),
        (600, 1300),
        (4000, 2000),
        (None, 300),
    ]
    contents = {}
    for value, (height, width) in enumerate(sides):
        contents |= captioned(range(value, value + 1), original_height=height, original_width=width)
    del contents["0000.json"], contents["0005.txt"]
    contents["0000.json"] = b'{"original_height": "256", "original_width": 256.0}'
    write_shard(tmp_path / "s.tar", contents)
    write_shard(tmp_path / "bare.tar", samples(range(3)))

    def kept(**limits):
        path = [str(tmp_path / "s.tar"), str(tmp_path / "bare.tar")]
        return values(WebDataset(path=path, image_size=8, captions="max_aspect" in limits, **limits))

    assert kept(max_aspect=2.0, min_side=256) == [0, 1, 2, 6]
    assert kept(max_aspect=2.0) == [0, 1, 2, 4, 6]
    with pytest.raises(CorruptSample, match="0005.png: no caption"):
        kept(max_aspect=3.0)
    assert (
        len(WebDataset(path=str(tmp_path / "s.tar"), image_size=8, captions=True)) == 8
    )  # no limit, no loss
    with pytest.raises(ValueError, match="no images within max_aspect=None, min_side=5000"):
        kept(min_side=5000)
    for limits in ({"max_aspect": 0.5}, {"min_side": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            kept(**limits)
