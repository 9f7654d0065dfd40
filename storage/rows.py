"""Arrays on disk whose rows any number of processes fill, in a job that may be interrupted."""

import json
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from common import distributed
from storage.files import require_space
from storage.json_files import read_json
from storage.npz import create_npz, first_rows

FACTS = "facts.json"


class RowFile:
    """Writes rows of an array that is memory-mapped read-only; several processes may write the same file."""

    # pwrite instead of a writable map: a full disk raises OSError instead of SIGBUS, and on network disks rows that
    # share a page do not overwrite each other.
    def __init__(self, rows: np.memmap) -> None:
        self.rows = rows
        self._file = os.open(rows.filename, os.O_WRONLY)

    def write(self, indices: Sequence[int], rows: np.ndarray) -> None:
        """Set rows [k, ...] at indices [k]; raises OSError."""
        data = memoryview(np.ascontiguousarray(rows, dtype=self.rows.dtype)).cast("B")
        size, indices = self.rows.strides[0], np.asarray(indices)
        # Consecutive rows go in one call: rows of tokens are short and many.
        ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)] if len(indices) else []
        start = 0
        for end in ends:
            done, left = int(indices[start]) * size, data[start * size : end * size]
            while left:
                written = os.pwrite(self._file, left, self.rows.offset + done)  # may write a part only
                done, left = done + written, left[written:]
            start = end

    def close(self) -> None:  # `rows` stays readable
        os.close(self._file)


class RowStore:
    """Unfinished work: arrays of `count` rows and a flag per row. Every process opens it and makes its share.

    Args:
        arrays: {name: (shape of a row, numpy type)}.
        facts: what the rows depend on (JSON values); work with other facts is not continued, but thrown away with
            `overwrite`.
        archived: names of arrays that lie as `arr_0` in files of `storage.npz.create_npz`.
        extra_bytes: disk space that will be needed besides the arrays.

    Raises:
        ValueError: the folder holds work with other facts or lacks a file, or the disk is too small.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: int,
        arrays: Mapping[str, tuple[tuple[int, ...], str]],
        facts: Mapping[str, Any],
        overwrite: bool = False,
        archived: Collection[str] = (),
        extra_bytes: int = 0,
    ) -> None:
        self.folder, self.count, self._archived, self._extra = folder, count, archived, extra_bytes
        columns = {**arrays, "flags": ((1,), "uint8")}
        distributed.on_main(lambda: self._prepare(columns, dict(facts), overwrite))
        self._files = {name: RowFile(self._open(name)) for name in columns}
        self._todo = np.flatnonzero(self._files["flags"].rows[:, 0] == 0)
        distributed.barrier()  # all processes read the same flags before one of them sets any

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.{'npz' if name in self._archived else 'npy'}"

    def _create(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        if name in self._archived:
            create_npz(self.path(name), "arr_0", shape, dtype)
        else:
            npy.open_memmap(self.path(name), mode="w+", dtype=dtype, shape=shape).flush()  # sparse zeros

    def _open(self, name: str) -> np.memmap:
        path = self.path(name)
        return first_rows(path) if name in self._archived else np.load(path, mmap_mode="r")

    def _prepare(self, columns: Mapping, facts: dict[str, Any], overwrite: bool) -> None:
        found, flags = read_facts(self.folder / FACTS), self.path("flags")
        if found is not None and flags.is_file() and np.load(flags, mmap_mode="r").any():
            other = differences(found, facts)
            lost = [path.name for path in map(self.path, columns) if not path.is_file()]
            if not other and not lost:
                return self._require_room(columns)
            if not overwrite:
                reason = f"with other settings ({other})" if other else f"without {', '.join(lost)}"
                advice = "remove it, choose another output, or overwrite=true"
                raise ValueError(f"{self.folder} holds unfinished work {reason}; {advice}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._require_room(columns)
        self.folder.mkdir(parents=True)
        for name, (shape, dtype) in columns.items():
            self._create(name, (self.count, *shape), dtype)
        (self.folder / FACTS).write_text(json.dumps(facts))  # last: a folder with facts is complete

    def _require_room(self, columns: Mapping) -> None:
        sizes = (np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in columns.values())
        taken = sum(allocated_bytes(self.path(name)) for name in columns)  # rows that are written already
        require_space(self.folder, self.count * sum(sizes) + self._extra - taken, "unfinished work")

    @property
    def missing(self) -> int:
        """Number of rows that were missing when the store was opened, over all processes."""
        return len(self._todo)

    def todo(self) -> np.ndarray:
        """Indices that this process makes: a contiguous share of those missing when the store was opened."""
        share, of = distributed.rank(), distributed.world_size()
        return self._todo[share * len(self._todo) // of : (share + 1) * len(self._todo) // of]

    def unfinished(self) -> np.ndarray:
        """Indices of all rows that were missing when the store was opened, int64."""
        return self._todo

    def write(self, index: int, **rows: np.ndarray) -> None:
        """Set row `index` of the named arrays, and flag it as done; raises OSError."""
        self.write_rows([index], **{name: row[None] for name, row in rows.items()})

    def write_rows(self, indices: Sequence[int], **rows: np.ndarray) -> None:
        """Set rows [k, ...] of the named arrays at indices [k], and flag them as done; raises OSError."""
        for name, values in rows.items():
            self._files[name].write(indices, values)
        self._files["flags"].write(indices, np.ones((len(indices), 1)))  # last: a flagged row is complete

    def rows(self, name: str) -> np.ndarray:
        """An array as it is now, memory-mapped read-only."""
        return self._files[name].rows

    def close(self) -> None:
        """Write no more; rows that were read stay readable."""
        for file in self._files.values():
            file.close()

    def remove(self) -> None:
        """Delete the folder; every process calls this when the final files are written."""
        distributed.barrier()
        self.close()
        if distributed.is_main():
            shutil.rmtree(self.folder)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a JSON file; None if it is missing or damaged."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return None


def differences(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """'seed 1 instead of 2; ...' for facts that `found` lacks or has with another value; '' if all agree."""
    return "; ".join(f"{k} {found.get(k)!r} instead of {v!r}" for k, v in facts.items() if found.get(k) != v)


def allocated_bytes(path: Path) -> int:
    """Disk space that a sparse file takes; 0 if it does not exist or the system does not say."""
    return 512 * getattr(path.stat(), "st_blocks", 0) if path.is_file() else 0  # a block is 512 bytes
