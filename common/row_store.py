"""Arrays on disk whose rows are made one by one, by any number of processes, in a job that may be interrupted."""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import distributed

FACTS = "facts.json"


class RowFile:
    """A `.npy` array on disk whose rows several processes fill.

    Rows go through `pwrite` and not through a memory map: on a full disk that is an error and not a crash, and on
    network disks neighbours in one page do not overwrite each other.
    """

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")
        self._offset, self._size = self.rows.offset, self.rows.nbytes // max(1, len(self.rows))
        self._file = os.open(path, os.O_WRONLY)

    @staticmethod
    def create(path: Path, shape: Sequence[int], dtype: str) -> None:
        """Make the file; it reads as zeros and takes no room before rows are written."""
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape)).flush()

    def write(self, index: int, row: np.ndarray) -> None:
        """Set one row."""
        data = memoryview(np.ascontiguousarray(row, dtype=self.rows.dtype)).cast("B")
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], self._offset + index * self._size + done)

    def close(self) -> None:
        """Close the file; `rows` stays readable."""
        os.close(self._file)


class RowStore:
    """Unfinished work: arrays of `count` rows and a flag per row. Every process opens it, each makes its share.

    Args:
        folder: where the arrays lie until `remove`.
        count: number of rows.
        arrays: {name: (shape of a row, numpy type)}.
        facts: what the rows depend on (JSON-able); work with other facts is not continued.
        overwrite: throw away work with other facts.

    Raises:
        ValueError: the folder holds work with other facts, or the disk has too little room.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: int,
        arrays: Mapping[str, tuple[tuple[int, ...], str]],
        facts: Mapping[str, Any],
        overwrite: bool = False,
    ) -> None:
        self.folder, self.count = folder, count
        columns = {**arrays, "flags": ((1,), "uint8")}
        error = self._prepare(columns, dict(facts), overwrite) if distributed.is_main() else None
        error = distributed.gather_objects(error)[0]
        if error is not None:
            raise ValueError(error)
        self._files = {name: RowFile(folder / f"{name}.npy") for name in columns}
        self._todo = np.flatnonzero(self._files["flags"].rows[:, 0] == 0)
        distributed.barrier()  # everybody has seen the same flags before anybody sets one

    def _prepare(self, columns: Mapping, facts: dict[str, Any], overwrite: bool) -> str | None:
        """Find the files of the same work or make new ones; returns what is wrong, for all processes to raise."""
        found = read_facts(self.folder / FACTS)
        if found is not None and np.load(self.folder / "flags.npy", mmap_mode="r").any():
            other = differences(found, facts)
            if not other:
                return None
            if not overwrite:
                return (
                    f"{self.folder} holds unfinished work with other settings ({other}); remove it,"
                    " choose another output, or overwrite=true"
                )
        shutil.rmtree(self.folder, ignore_errors=True)
        sizes = (np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in columns.values())
        needed, free = self.count * sum(sizes), free_bytes(self.folder)
        if free < needed:
            return f"{self.folder}: {free >> 20} MiB are free, but {needed >> 20} MiB are needed"
        self.folder.mkdir(parents=True)
        for name, (shape, dtype) in columns.items():
            RowFile.create(self.folder / f"{name}.npy", (self.count, *shape), dtype)
        (self.folder / FACTS).write_text(json.dumps(facts))  # last: what has facts is complete
        return None

    @property
    def missing(self) -> int:
        """Rows that were missing when the store was opened, over all processes."""
        return len(self._todo)

    def todo(self) -> np.ndarray:
        """Rows that this process has to make: its contiguous share of those missing when the store was opened."""
        share, of = distributed.rank(), distributed.world_size()
        return self._todo[share * len(self._todo) // of : (share + 1) * len(self._todo) // of]

    def write(self, index: int, **rows: np.ndarray) -> None:
        """Set row `index` of the named arrays, and flag it as done.

        Raises:
            OSError: the disk is full or fails.
        """
        for name, row in rows.items():
            self._files[name].write(index, row)
        self._files["flags"].write(index, np.ones(1))  # last: what is flagged is complete

    def rows(self, name: str) -> np.ndarray:
        """An array as it is now, memory-mapped read-only."""
        return self._files[name].rows

    def remove(self) -> None:
        """Delete the folder; every process calls this when the final files are written."""
        distributed.barrier()
        for file in self._files.values():
            file.close()
        if distributed.is_main():
            shutil.rmtree(self.folder)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a JSON file, None if it is missing or was cut."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def differences(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """'seed 1 instead of 2; ...' for facts that `found` has otherwise or not at all; '' if there are none."""
    return "; ".join(f"{k} {found.get(k)!r} instead of {v!r}" for k, v in facts.items() if found.get(k) != v)


def free_bytes(folder: Path) -> int:
    """Room on the disk where `folder` is or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
