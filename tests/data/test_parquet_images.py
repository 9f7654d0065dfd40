"""Parquet files as data sets: columns, labels, captions, row groups, memory, damage, remote files, the Hub."""

import io
import json
import multiprocessing
import sys

import numpy as np
import pyarrow as pa
import pytest
from huggingface_hub import HfFileSystem
from PIL import Image
from pyarrow import parquet

from data.hub_files import CONVERTED, choose_files, split_of
from data.loaders import eval_loader, train_loader
from data.parquet_images import HubImages, ParquetImages, parquet_paths
from data.parquet_rows import ParquetRows
from data.source import CorruptSample
from storage.remote_files import RemoteError
from tests.data import hub_server
from tests.data.hub_server import Hub
from tests.data.web_server import serve


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def hub_schema(names: list[str]) -> pa.Schema:
    """As the `datasets` library writes it."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("caption", pa.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def write(path, values, *, group: int = 3, names=("a", "b", "c"), **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        "image": [{"bytes": png(v), "path": f"{v}.png"} for v in values],
        "label": [v % 3 for v in values],
        "caption": [f" picture {v}\n" for v in values],
        **columns,
    }
    parquet.write_table(pa.table(rows, schema=hub_schema(list(names))), path, row_group_size=group)


@pytest.fixture
def folder(tmp_path):
    for part in range(3):
        write(tmp_path / f"set/train-0000{part}-of-00003.parquet", range(10 * part, 10 * part + 8))
    return tmp_path / "set"


def values(source) -> list[int]:
    rngs = [np.random.default_rng(0)] * len(source)
    return [round(v.float().mean().item()) for v in source.load_many(range(len(source)), rngs)]


EVERY = [*range(8), *range(10, 18), *range(20, 28)]


def test_rows_of_all_files_in_order(folder):
    for path in (str(folder), f"{folder}/*.parquet", f"{folder}/train-0000{{0..2}}-of-00003.parquet"):
        source = ParquetImages(path=path, image_size=8, caption_column="caption")
        assert values(source) == EVERY
        assert source.labels.tolist() == [v % 3 for v in EVERY]
        assert source.class_names == ["a", "b", "c"]
        assert source.captions([0, 23]) == ["picture 0", "picture 27"]
    assert ParquetImages(path=path, image_size=8, class_names=["x", "y", "z"]).class_names == ["x", "y", "z"]
    without = ParquetImages(path=path, image_size=8, label_column=None)
    assert without.class_names == ["image"] and not without.labels.any()
    with pytest.raises(ValueError, match=r"train-00000-of-00003.parquet: row 2 has label 2, but there are 2"):
        ParquetImages(path=path, image_size=8, num_classes=2, class_names=["x", "y"])


def test_bare_bytes_and_the_forms_of_integers(tmp_path):
    for kind in (pa.int8(), pa.uint16(), pa.int64()):
        table = {"jpg": pa.array([png(1), png(2)], pa.large_binary()), "cls": pa.array([0, 4], kind)}
        parquet.write_table(pa.table(table), tmp_path / "x.parquet")
        source = ParquetImages(
            path=str(tmp_path / "x.parquet"), image_size=8, image_column="jpg", label_column="cls"
        )
        assert values(source) == [1, 2] and source.labels.tolist() == [0, 4]
        assert source.class_names == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"image_column": "picture"}, r"no column image_column='picture'; its columns: image \(struct"),
        ({}, {"label_column": "cls"}, r"no column label_column='cls'; its columns: .*label \(int64\)"),
        ({}, {"image_column": "caption"}, r"image_column='caption' is string; expected binary"),
        ({}, {"label_column": "caption"}, r"label_column='caption' is string; expected integers"),
        ({}, {"caption_column": "label"}, r"caption_column='label' is int64; expected text"),
        ({}, {"memory_megabytes": 1e-6}, r"a row group takes .* memory, more than the"),
        ({"label": [0, 2**31]}, {}, "column 'label' holds 2147483648, which is no class number"),
        ({"label": [None, -1]}, {}, "has no labels in column 'label'; label_column=null does without"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_columns_there_are(tmp_path, columns, options, message):
    write(tmp_path / "x.parquet", range(2), **columns)
    with pytest.raises(ValueError, match=message):
        ParquetImages(path=str(tmp_path / "x.parquet"), image_size=8, **options)


def test_labels_that_are_no_integers_are_refused(tmp_path):
    for labels in ([True, False], [1.0, 2.0]):
        parquet.write_table(pa.table({"image": [png(1)] * 2, "label": labels}), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="expected integers"):
            ParquetImages(path=str(tmp_path / "x.parquet"), image_size=8)


def test_rows_that_cannot_be_read_are_skipped_by_name(tmp_path):
    images = [{"bytes": png(v), "path": ""} for v in range(6)]
    images[1] = None
    images[2] = {"bytes": None, "path": "/elsewhere/2.png"}
    images[3] = {"bytes": b"no image", "path": "3.png"}
    write(tmp_path / "x.parquet", range(6), image=images, label=[0, 1, 2, 0, None, 2])
    source = ParquetImages(path=str(tmp_path / "x.parquet"), image_size=8)
    (batch,) = eval_loader(source, batch_size=6)
    assert batch["positions"].tolist() == [0, 5]
    path = tmp_path / "x.parquet"
    assert batch["skipped"] == [
        f"{path}: row 1: no image",
        f"{path}: row 2: its file '/elsewhere/2.png' is not stored with it",
        f"{path}: row 3: not a readable image",
        f"{path}: row 4: no label",
    ]


def test_file_names_that_are_not_utf8(tmp_path):
    """Only the image counts; its file name is for messages."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = pa.array([b"\xe9.png", b"b.png"], pa.binary()).cast(pa.string(), safe=False)
    cells = pa.StructArray.from_arrays([pa.array([png(1), png(2)]), names], fields=list(kind))
    parquet.write_table(pa.table({"image": cells, "label": [0, 1]}), tmp_path / "x.parquet")
    source = ParquetImages(path=str(tmp_path / "x.parquet"), image_size=8)
    assert values(source) == [1, 2]
    assert [source._rows.read(i).file_name for i in (0, 1)] == ["", "b.png"]


def test_damaged_files(folder):
    first = folder / "train-00000-of-00003.parquet"
    content = bytearray(first.read_bytes())
    content[4:60] = bytes(56)  # where the pages of the first row group begin
    first.write_bytes(content)
    source = ParquetImages(path=str(folder), image_size=8)
    with pytest.raises(CorruptSample, match=r"train-00000-of-00003.parquet: row 1: its row group cannot be"):
        source.load(1, np.random.default_rng(0))
    assert source.load(5, np.random.default_rng(0))[1] == 2
    first.write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"train-00000-of-00003.parquet is damaged or not a parquet file"):
        ParquetImages(path=str(folder), image_size=8)


def test_a_missing_library_is_named_with_its_requirements_file(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install -r requirements-data.txt"):
        ParquetImages(path=str(folder), image_size=8)


def test_paths(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no file fits"):
        parquet_paths(f"{tmp_path}/none-*.parquet")
    with pytest.raises(FileNotFoundError, match="holds no .parquet file"):
        parquet_paths(str((tmp_path / "empty").mkdir() or tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="parquet file .*none.parquet does not exist"):
        ParquetImages(path=str(tmp_path / "none.parquet"), image_size=8)
    write(folder / "validation-00000-of-00001.parquet", range(3))
    with pytest.raises(ValueError, match=r"several splits \(train, validation\); write a pattern"):
        parquet_paths(str(folder))


def test_class_names_must_agree(folder):
    write(folder / "train-00003-of-00003.parquet", range(3), names=("b", "a", "c"))
    with pytest.raises(ValueError, match="train-00003-of-00003.parquet has other class names"):
        ParquetImages(path=str(folder), image_size=8)


def test_training_shows_each_row_once_per_epoch_and_resumes_exactly(folder):
    source = ParquetImages(path=str(folder), image_size=8, random_flip=True, shuffle_window=4)
    options = {"seed": 3, "batch_size": 6}

    def batches(loader, count):
        found = iter(loader)
        return [next(found) for _ in range(count)]

    whole = batches(train_loader(source, **options), 8)
    shown = [round(v.float().mean().item()) for batch in whole for v in batch["images"]]
    assert sorted(shown[:24]) == sorted(shown[24:]) == EVERY and shown[:24] != shown[24:]
    for workers in (0, 2):
        resumed = batches(train_loader(source, **options, start_step=3, num_workers=workers), 3)
        for own, other in zip(resumed, whole[3:6], strict=True):
            assert (own["images"] == other["images"]).all() and (own["labels"] == other["labels"]).all()


def test_workers_that_are_not_forked(folder):
    source = ParquetImages(path=str(folder), image_size=8)
    source.load(0, np.random.default_rng(0))  # files and row groups are open
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(values, (source,)) == EVERY


def test_memory_is_bounded(folder):
    source = ParquetImages(path=str(folder), image_size=8)
    largest = source._rows.largest_group
    small = ParquetImages(path=str(folder), image_size=8, memory_megabytes=2.5 * largest / 1e6)
    assert small._window == 2  # a window has to fit
    random = np.random.default_rng(0)
    for index in random.integers(0, len(small), 60):
        small.load(int(index), random)
        held = sum(table.nbytes for table in small._rows._groups.values())
        assert held <= 2.5 * largest
    assert len(small._rows._groups) < len(source._rows.starts) - 1


def test_what_was_learned_of_files_is_kept(folder, monkeypatch):
    ParquetImages(path=str(folder), image_size=8)
    monkeypatch.setattr("data.parquet_facts.OpenParquet", None)  # opening nothing
    assert len(ParquetImages(path=str(folder), image_size=8)) == 24
    with pytest.raises(TypeError):
        ParquetImages(path=str(folder), image_size=8, label_column=None)  # other columns
    monkeypatch.undo()


def test_remote_files_are_fetched_into_the_cache(folder, tmp_path):
    with serve(folder) as (address, faults):
        faults.cut_after = [1000]
        path = f"{address}/train-0000{{0..2}}-of-00003.parquet"
        source = ParquetImages(path=path, image_size=8, cache=tmp_path / "fetched")
        assert values(source) == EVERY
        faults.always = 500
        again = ParquetImages(path=path, image_size=8, cache=tmp_path / "fetched")
        loader = train_loader(again, seed=0, batch_size=6, num_workers=0)
        assert next(iter(loader))["images"].shape == (6, 3, 8, 8)
        faults.always = None
        with pytest.raises(RemoteError, match="cache_gigabytes=1e-06 is too small: the 3 parquet files take"):
            ParquetImages(path=path, image_size=8, cache=tmp_path / "small", cache_gigabytes=1e-6)


# ---- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("data/train-00000-of-00294.parquet", ("", "train")),
        ("data/validation-00000-of-00014-8d2b1c2a.parquet", ("", "validation")),
        ("full/train/0000.parquet", ("full", "train")),
        ("default/partial-train/0000.parquet", ("default", "partial-train")),
        ("test.parquet", ("", "test")),
        ("en/train_000.parquet", ("en", "train")),
    ],
)
def test_split_and_subset_follow_from_the_path(file, expected):
    assert split_of(file) == expected


def test_a_wrong_split_or_subset_names_those_there_are():
    files = ["a/train-0-of-1.parquet", "b/train-0-of-1.parquet", "b/test-0-of-1.parquet"]
    with pytest.raises(RemoteError, match="X has the subsets a, b; choose one"):
        choose_files(files, what="X", split="train")
    with pytest.raises(RemoteError, match="X has no subset 'c', but the subsets a, b"):
        choose_files(files, what="X", split="train", subset="c")
    with pytest.raises(RemoteError, match="X has no split 'val'; its splits: test, train"):
        choose_files(files, what="X", split="val", subset="b")
    assert choose_files(files, what="X", split="train", subset="b") == files[1:2]


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A data set whose parquet files the Hub has made: `main` holds an archive only."""
    (tmp_path / "hub/default/train").mkdir(parents=True)
    (tmp_path / "main").mkdir()
    (tmp_path / "main/pictures.zip").write_bytes(b"x")
    for number, file in enumerate(sorted(folder.glob("*.parquet"))):
        file.rename(tmp_path / f"hub/default/train/{number:04d}.parquet")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("data.shard_cache._FIRST_PAUSE", 0.01)
    HfFileSystem.clear_instance_cache()
    standin = Hub("me/pictures", {CONVERTED: tmp_path / "hub", "main": tmp_path / "main"})
    with hub_server.serve(standin) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield standin
    HfFileSystem.clear_instance_cache()


def test_a_data_set_of_the_hub_by_its_name(hub, tmp_path, monkeypatch):
    hub.cut_after = [700]
    source = HubImages(dataset="me/pictures", image_size=8, cache=tmp_path / "fetched")
    assert values(source) == EVERY and source.class_names == ["a", "b", "c"]
    assert source._rows.paths[0] == f"hf://datasets/me/pictures@{'5' * 40}/default/train/0000.parquet"

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # the network is gone
    again = HubImages(dataset="me/pictures", image_size=8, cache=tmp_path / "fetched")
    assert values(again) == EVERY
    with pytest.raises(RemoteError, match="Hub data set me/other: the Hub cannot be asked"):
        HubImages(dataset="me/other", image_size=8)


def test_what_the_hub_refuses_is_named(hub, tmp_path):
    with pytest.raises(RemoteError, match="me/pictures has no revision 'v9'"):
        HubImages(dataset="me/pictures", image_size=8, revision="v9")
    with pytest.raises(RemoteError, match="me/none does not exist or may not be read; private and gated"):
        HubImages(dataset="me/none", image_size=8)
    with pytest.raises(RemoteError, match="me/pictures has no split 'test'; its splits: train"):
        HubImages(dataset="me/pictures", image_size=8, split="test")
    hub.gated = True
    with pytest.raises(RemoteError, match="default/train/0000.parquet may not be read"):
        HubImages(dataset="me/pictures", image_size=8, cache=tmp_path / "fetched")
    hub.gated = False
    del hub.revisions[CONVERTED]
    with pytest.raises(RemoteError, match="has no parquet files, and the Hub has converted none"):
        HubImages(dataset="me/pictures", image_size=8)


def test_rows_are_named_by_file_and_number(folder):
    rows = ParquetImages(path=str(folder), image_size=8)._rows
    assert isinstance(rows, ParquetRows)
    assert rows.name(8) == f"{folder}/train-00001-of-00003.parquet: row 0"
    assert rows.name(23) == f"{folder}/train-00002-of-00003.parquet: row 7"
