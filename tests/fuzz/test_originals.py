"""Files of other people that become data sets: parquet, and ImageNet's lists of labels."""

import io
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import parquet

from data.packing.imagenet_labels import read_annotations
from data.parquet_facts import Columns
from data.parquet_rows import ParquetRows
from data.shard_cache import ShardCache
from data.source import CorruptSample
from tests.data import imagenet_standin as imagenet
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import damaged, garbage, one_of_files


def _parquet(compression: str) -> bytes:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": bytes([i]) * 50, "path": f"{i}.png"} for i in range(6)], kind)
    file = io.BytesIO()
    table = pa.table({"image": images, "label": list(range(6))})
    parquet.write_table(table, file, row_group_size=2, compression=compression)
    return file.getvalue()


def _read_rows(folder: Path, argument: Any) -> None:
    with mock.patch("data.parquet_facts.atomic_file", side_effect=OSError):  # nothing is kept of the files
        cache = ShardCache(folder, 1.0)
        rows = ParquetRows([str(folder / "x.parquet")], Columns(), cache=cache, memory=1 << 20)
    for row in range(min(len(rows), 20)):
        rows.read(row)


def _read_annotations(folder: Path, name: str) -> None:
    read_annotations([folder / name]).synset_of("ILSVRC2012_val_00000001.JPEG")


_lists = one_of_files(
    b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
    b"n01440764\nn01443537\nn01440764\n",
    b"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4 \n",
    b"val_0.JPEG\tn01440764\t0\t0\t1\t1\n",
    b"1\n2\n",
)
PARQUET = Reader(
    "parquet",
    st.builds(
        lambda content: Case({"x.parquet": content}),
        st.one_of(damaged(one_of_files(*map(_parquet, ("none", "snappy")))), garbage),
    ),
    _read_rows,
    errors=(ValueError, OSError, CorruptSample),
)
ANNOTATIONS = Reader(
    "annotations",
    st.builds(
        lambda name, content: Case({name: content}, name),
        st.sampled_from(["LOC_val_solution.csv", "synsets.txt", "val_annotations.txt"]),
        st.one_of(damaged(_lists), garbage),
    ),
    _read_annotations,
)
DEVKIT = Reader(
    "meta.mat",
    st.builds(
        lambda content: Case({"meta.mat": content}, "meta.mat"),
        st.one_of(damaged(one_of_files(imagenet.meta())), garbage),
    ),
    _read_annotations,
)


def test_parquet_files():
    check(PARQUET)


def test_lists_of_labels():
    check(ANNOTATIONS)
    check(DEVKIT)
