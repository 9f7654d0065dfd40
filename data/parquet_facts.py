"""What opening needs to know of a parquet file (rows per group, labels, class names), kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.console import one_line
from data.shard_cache import ShardCache
from data.tar_index import NO_LABEL
from storage.files import atomic_file, user_cache_folder
from storage.json_files import parse_json
from storage.labels import LARGEST
from storage.remote_files import is_remote

_VERSION = 1  # of the kept facts


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None where there is none."""

    image: str = "image"
    label: str | None = "label"
    caption: str | None = None

    def names(self) -> list[str]:
        """Those that an example is made of; labels are read when the files are opened."""
        return [self.image] + ([self.caption] if self.caption else [])


@dataclass(frozen=True)
class FileFacts:
    """What opening needs to know of one file."""

    rows: np.ndarray  # int64 [groups]
    sizes: np.ndarray  # int64 [groups], bytes of all its columns in memory
    labels: np.ndarray  # int64 [rows of the file], NO_LABEL if null or negative
    class_names: tuple[str, ...] | None  # as the `datasets` library keeps them in the schema


def open_facts(path: str, columns: Columns, cache: ShardCache) -> FileFacts:
    """Facts of a file, kept or read from it.

    Raises:
        FileNotFoundError: a local file does not exist.
        ValueError: it is damaged; a column is missing or of another type.
        RemoteError: a remote file cannot be fetched.
    """
    identity = json.dumps([path if is_remote(path) else os.path.abspath(path), asdict(columns)])
    name = f"{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.npz"
    place, state = user_cache_folder() / "parquet" / name, _state(path, cache)
    kept = _read_facts(place, state) if state else None
    if kept is not None:
        return kept
    try:
        facts = _facts_of(OpenParquet(path, cache).file, path, columns)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: a name of a column is not UTF-8") from error
    with suppress(OSError):  # a read-only cache folder: the file is opened again next time
        arrays = {"rows": facts.rows, "sizes": facts.sizes, "labels": facts.labels}
        names = np.array(json.dumps(facts.class_names))
        with atomic_file(place) as temporary, open(temporary, "wb") as file:
            np.savez(file, state=np.array(_state(path, cache)), class_names=names, **arrays)
    return facts


def _state(path: str, cache: ShardCache) -> str:
    """What changes with the content of a file; empty for a remote one that was never fetched."""
    if is_remote(path):
        version = cache.known_version(path)
        return json.dumps([_VERSION, version.size, version.etag]) if version else ""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"parquet file {path} does not exist")
    status = os.stat(path)
    return json.dumps([_VERSION, status.st_size, status.st_mtime_ns])


class OpenParquet:
    """A parquet file; a remote one stays in the cache as long as it is open."""

    def __init__(self, path: str, cache: ShardCache) -> None:
        pyarrow = require_pyarrow()
        from pyarrow import parquet

        self._held: int | None = None
        local = path
        if is_remote(path):
            self._held, local = cache.open(path), str(cache.place(path))
        try:
            self.file = parquet.ParquetFile(local, memory_map=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged or not a parquet file: {one_line(error)}") from error

    def __del__(self) -> None:
        if getattr(self, "_held", None) is not None:
            os.close(self._held)


def require_pyarrow() -> ModuleType:
    """The module `pyarrow`; raises ValueError, with the command that installs it, if it is missing."""
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(
            f"parquet files need pyarrow ({error}): pip install -r requirements-data.txt"
        ) from error
    return pyarrow


def _read_facts(place: Path, state: str) -> FileFacts | None:
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if str(arrays["state"]) != state:
                return None
            names = json.loads(str(arrays["class_names"]))
            return FileFacts(
                arrays["rows"], arrays["sizes"], arrays["labels"], None if names is None else tuple(names)
            )
    except Exception:  # whatever is wrong with what was kept, reading the file again is right
        return None


def _facts_of(file: Any, path: str, columns: Columns) -> FileFacts:
    pyarrow = require_pyarrow()
    schema, head = file.schema_arrow, file.metadata
    _check_columns(schema, path, columns)
    groups = [head.row_group(number) for number in range(head.num_row_groups)]
    # Of all columns: at what a damaged file says of a single one, pyarrow ends the process.
    sizes = [group.total_byte_size for group in groups]
    labels = np.full(head.num_rows, NO_LABEL, dtype=np.int64)
    if columns.label is not None:
        try:
            column = file.read(columns=[columns.label], use_threads=False).column(columns.label)
            labels = column.cast(pyarrow.int64()).fill_null(NO_LABEL).to_numpy()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: column {columns.label!r} cannot be read: {one_line(error)}") from error
        if labels.max(initial=NO_LABEL) > LARGEST:
            raise ValueError(
                f"{path}: column {columns.label!r} holds {labels.max()}, which is no class number"
            )
        labels = np.where(labels < 0, NO_LABEL, labels)  # -1 stands for a hidden label
    rows = np.array([group.num_rows for group in groups], dtype=np.int64)
    if len(labels) != rows.sum() or rows.min(initial=0) < 0:
        raise ValueError(f"{path} is damaged: {len(labels)} labels of {rows.sum()} rows")
    return FileFacts(rows, np.array(sizes, dtype=np.int64), labels, _class_names(schema, columns.label))


def _check_columns(schema: Any, path: str, columns: Columns) -> None:
    types = require_pyarrow().types
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)
    for key, name in asdict(columns).items():
        if name is not None and name not in schema.names:
            raise ValueError(f"{path} has no column {key}_column={name!r}; its columns: {there}")

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    image = schema.field(columns.image).type
    parts = {part.name: part.type for part in image} if types.is_struct(image) else {}
    if not is_bytes(image) and not is_bytes(parts.get("bytes", require_pyarrow().null())):
        raise ValueError(
            f"{path}: image_column={columns.image!r} is {image}; expected binary, or a struct with bytes and path;"
            f" its columns: {there}"
        )
    if columns.label is not None and not types.is_integer(schema.field(columns.label).type):
        kind = schema.field(columns.label).type
        raise ValueError(
            f"{path}: label_column={columns.label!r} is {kind}; expected integers; its columns: {there}"
        )
    if columns.caption is not None:
        kind = schema.field(columns.caption).type
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise ValueError(
                f"{path}: caption_column={columns.caption!r} is {kind}; expected text; its columns: {there}"
            )


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """Names of the classes, where the `datasets` library has left them."""
    try:
        features = parse_json(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return tuple(map(str, names)) if names else None
    except (KeyError, TypeError, ValueError):
        return None
