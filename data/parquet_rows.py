"""Rows of parquet files, local or remote, read at random places with bounded memory.

A row group is the smallest part of a parquet file that can be read alone; the last used ones stay in memory.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import distributed
from common.console import one_line, progress
from data.parquet_facts import Columns, FileFacts, OpenParquet, open_facts, require_pyarrow
from data.shard_cache import ShardCache
from data.source import CorruptSample
from storage.remote_files import RemoteError, is_remote
from storage.tar_members import read_shards

_OPEN_FILES = 32


@dataclass(frozen=True)
class Row:
    """An image as it is stored, its file name if there is one, and its caption."""

    content: bytes
    file_name: str
    caption: str | None


class ParquetRows:
    """Rows of several files, numbered through.

    Args:
        paths: local paths and URLs.
        cache: where remote files are kept whole.
        memory: bytes that row groups may take in each process.

    Raises:
        FileNotFoundError: a local file does not exist.
        ValueError: pyarrow is missing; a file is damaged; a column is missing or of another type; class names differ
            between files; one row group is larger than `memory`.
        RemoteError: a remote file cannot be fetched.
    """

    def __init__(self, paths: Sequence[str], columns: Columns, *, cache: ShardCache, memory: int) -> None:
        self.paths, self.columns, self._cache, self._memory = list(paths), columns, cache, memory
        facts = self._all_facts()
        self._group_file = np.repeat(np.arange(len(facts)), [len(f.rows) for f in facts])
        self._first_group = np.concatenate([[0], np.cumsum([len(f.rows) for f in facts])])
        # int64 [groups + 1]: the first row of every row group, and the number of rows.
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate([f.rows for f in facts]))]).astype(
            np.int64
        )
        self.labels = np.concatenate([f.labels for f in facts])
        self.class_names = self._one_list(facts)
        sizes = np.concatenate([f.sizes for f in facts])
        self.bytes, self.largest_group = int(sizes.sum()), int(sizes.max(initial=0))
        if self.largest_group > memory:
            where = self.paths[int(self._group_file[int(sizes.argmax())])]
            raise ValueError(
                f"{where}: a row group takes up to {self.largest_group / 1e6:.0f} MB of memory, more than the"
                f" {memory / 1e6:.0f} MB allowed; allow more, or make shards of it with scripts/prepare_data.py"
            )
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_files", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, row: int) -> Row:
        """One row.

        Raises:
            CorruptSample: its row group cannot be read, or it holds no image.
        """
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        try:
            table = self._group(group)
        except RemoteError:
            raise
        except (OSError, ValueError) as error:  # also what pyarrow raises for damage
            raise CorruptSample(self.name(row), f"its row group cannot be read: {one_line(error)}") from error
        at = row - int(self.starts[group])
        if at >= len(table):
            raise CorruptSample(self.name(row), "its row group has fewer rows than the file says")
        try:
            image, file_name = _image(table.column(self.columns.image)[at])
            caption = table.column(self.columns.caption)[at].as_py() if self.columns.caption else None
        except UnicodeDecodeError as error:
            raise CorruptSample(self.name(row), "its caption is not UTF-8") from error
        if image is None:
            reason = f"its file {file_name!r} is not stored with it" if file_name else "no image"
            raise CorruptSample(self.name(row), reason)
        return Row(image, file_name, caption)

    def name(self, row: int) -> str:
        """File and row in it, from 0."""
        file = self.file_of(int(np.searchsorted(self.starts, row, side="right")) - 1)
        return f"{self.paths[file]}: row {row - int(self.starts[self._first_group[file]])}"

    def file_of(self, group: int) -> int:
        """Number of the file that holds a row group."""
        return int(self._group_file[group])

    def expect(self, *groups: Sequence[int]) -> None:
        """Fetch the remote files of row groups in the background, those of the first list first."""
        files = [dict.fromkeys(self.paths[self.file_of(int(g))] for g in group) for group in groups]
        remote = [[path for path in paths if is_remote(path)] for paths in files]
        if any(remote):
            self._cache.expect(*remote)

    # ---- reading -------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._files: OrderedDict[int, OpenParquet] = OrderedDict()
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._process = os.getpid()

    def _group(self, number: int) -> Any:
        """A row group as a pyarrow table."""
        if self._process != os.getpid():  # forked: open files share their position with the parent
            self._forget()
        if number in self._groups:
            self._groups.move_to_end(number)
            return self._groups[number]
        file = self._group_file[number]
        opened = self._files.pop(file, None) or OpenParquet(self.paths[file], self._cache)
        self._files[file] = opened
        while len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        # Threads of pyarrow would be lost in forked workers.
        table = opened.file.read_row_group(
            number - int(self._first_group[file]), columns=self.columns.names(), use_threads=False
        )
        while self._groups and sum(t.nbytes for t in self._groups.values()) + table.nbytes > self._memory:
            self._groups.popitem(last=False)
        self._groups[number] = table
        return table

    # ---- opening -------------------------------------------------------------------------------------------------

    def _all_facts(self) -> list[FileFacts]:
        require_pyarrow()

        def prepare() -> None:
            found = read_shards(self._open, self.paths)
            for _ in progress(found, "opening parquet files", total=len(self.paths), unit="file", delay=3.0):
                pass

        distributed.on_local_main(prepare)  # the others of the node find what it has kept
        return list(read_shards(self._open, self.paths))

    def _open(self, path: str) -> FileFacts:
        return open_facts(path, self.columns, self._cache)

    def _one_list(self, facts: Sequence[FileFacts]) -> list[str] | None:
        first: tuple[str, ...] | None = None
        for path, own in zip(self.paths, (f.class_names for f in facts), strict=True):
            if own is not None and first is not None and own != first:
                raise ValueError(f"{path} has other class names than the files before it")
            first = own if first is None else first
        return None if first is None else list(first)


def _image(cell: Any) -> tuple[bytes | None, str]:
    """Bytes and file name in a cell: binary, or a struct of both."""
    if not hasattr(cell, "keys") or not cell.is_valid:
        return cell.as_py(), ""
    try:
        file_name = cell["path"].as_py() if "path" in cell.keys() else None  # noqa: SIM118 (no dict)
    except UnicodeDecodeError:  # the name is only shown
        file_name = None
    return cell["bytes"].as_py(), file_name if isinstance(file_name, str) else ""
