"""A numbered collection of images, written in any order by any number of processes, as PNG files and one NPZ.

While it is being written, pixels, tokens and a flag per image lie in `unfinished.part/`, each image in its own bytes of
preallocated files, so that an interrupted job goes on where it stopped, and memory does not grow with the collection.
"""

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from common.images import pil_to_tensor, read_image, save_png

PART, FACTS, ARRAYS = "unfinished.part", "samples.json", "samples.npz"


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


class ImageStore:
    """Square uint8 images and their tokens. Every process opens the store, the main process finishes it.

    Args:
        folder: where the results go: `<index:06d>.png`, `samples.npz`, `samples.json`.
        count: number of images.
        side: of an image in pixels.
        num_tokens: tokens per image.
        facts: what the images depend on; a folder with other facts is not continued.
        png, npz: which files to make.
        overwrite: throw away what the folder holds with other facts.

    Raises:
        ValueError: the folder holds images with other facts, or the disk has too little room.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        count: int,
        side: int,
        num_tokens: int,
        facts: Mapping[str, Any],
        png: bool = True,
        npz: bool = True,
        overwrite: bool = False,
    ) -> None:
        self.folder, self.facts = Path(folder), {**facts, "png": png, "npz": npz}
        self.png, self.npz = png, npz
        self.part = self.folder / PART
        self.complete = False
        error = (
            self._prepare((count, side, side, 3), num_tokens, overwrite) if distributed.is_main() else None
        )
        error, self.complete = distributed.gather_objects((error, self.complete))[0]
        if error is not None:
            raise ValueError(error)
        if self.complete:
            return
        files = [RowFile(self.part / f"{name}.npy") for name in ("pixels", "tokens", "done")]
        self._pixels, self._tokens, self._done = files
        self._workers = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
        self._written: deque[Future] = deque()
        self._todo = np.flatnonzero(self._done.rows[:, 0] == 0)
        distributed.barrier()  # everybody has seen the same flags before anybody sets one

    def _prepare(self, shape: tuple[int, ...], num_tokens: int, overwrite: bool) -> str | None:
        """Make the files or find those of the same job; returns what is wrong, for all processes to raise."""
        for path in (self.folder / FACTS, self.part / FACTS):
            found = self._differences(path)
            if found == [] and path.parent == self.folder:
                self.complete = True
                return None
            if found and not overwrite:
                return (
                    f"{self.folder} holds images made with other settings ({'; '.join(found)}); choose another"
                    " output, or overwrite=true"
                )
            if found:
                self._remove_old()
        needed, free = math.prod(shape) * (2 if self.npz else 1), _free_bytes(self.folder)
        if free < needed:
            return f"{self.folder}: {free >> 20} MiB are free, but {needed >> 20} MiB are needed"
        if self._differences(self.part / FACTS) is None:
            shutil.rmtree(self.part, ignore_errors=True)
            self.part.mkdir(parents=True)
            RowFile.create(self.part / "pixels.npy", shape, "uint8")
            RowFile.create(self.part / "tokens.npy", (shape[0], num_tokens), "int64")
            RowFile.create(self.part / "done.npy", (shape[0], 1), "uint8")
            (self.part / FACTS).write_text(json.dumps(self.facts))
        return None

    def _differences(self, path: Path) -> list[str] | None:
        """None if there is no such file or nothing was made yet, else how its facts differ from those of this job."""
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):  # written last, so nothing of worth is there
            return None
        if path.parent == self.part and not np.load(self.part / "done.npy", mmap_mode="r").any():
            return None
        return [f"{k} {found.get(k)!r} instead of {v!r}" for k, v in self.facts.items() if found.get(k) != v]

    def _remove_old(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)
        old_pictures = (p for p in self.folder.glob("*.png") if p.stem.isdigit())
        for path in (*old_pictures, self.folder / FACTS, self.folder / ARRAYS):
            path.unlink(missing_ok=True)

    @property
    def missing(self) -> int:
        """Images that were missing when the store was opened, over all processes."""
        return len(self._todo)

    def todo(self) -> np.ndarray:
        """Indices that this process has to make: its contiguous share of what was missing when the store was opened."""
        share, of = distributed.rank(), distributed.world_size()
        return self._todo[share * len(self._todo) // of : (share + 1) * len(self._todo) // of]

    def put(self, indices: Sequence[int], images: torch.Tensor, tokens: torch.Tensor) -> None:
        """Store images uint8 [B, 3, S, S] with tokens [B, N]; encoding and writing go on in the background.

        Raises:
            OSError: an earlier image could not be written.
        """
        while len(self._written) > 256:  # bounds memory when images come faster than they can be written
            self._written.popleft().result()
        for index, image, row in zip(indices, images.cpu(), tokens.cpu(), strict=True):
            self._written.append(self._workers.submit(self._write, int(index), image, row.numpy()))

    def _write(self, index: int, image: torch.Tensor, tokens: np.ndarray) -> None:
        if self.png:
            save_png(self.folder / f"{index:06d}.png", image)
        if not self.png or self.npz:
            self._pixels.write(index, image.permute(1, 2, 0).numpy())
        self._tokens.write(index, tokens)
        self._done.write(index, np.ones(1, np.uint8))  # last: what is flagged is complete

    def image(self, index: int) -> torch.Tensor:
        """One stored image, uint8 [3, S, S]; `flush` first."""
        if self._done.rows[index, 0] and (self.npz or not self.png):
            return torch.from_numpy(self._pixels.rows[index].copy()).permute(2, 0, 1)
        return pil_to_tensor(read_image(self.folder / f"{index:06d}.png"))

    def flush(self) -> None:
        """Wait until all processes have written all they were given.

        Raises:
            OSError: an image could not be written.
        """
        while self._written:
            self._written.popleft().result()
        distributed.barrier()

    def finish(self, labels: np.ndarray, **results: Any) -> None:
        """After `flush`: turn the parts into the final files (main process).

        Args:
            labels: int64 [count].
            results: JSON-able values to be kept with the facts.
        """
        if distributed.is_main():
            if self.npz:
                self._write_npz(labels)
            (self.folder / FACTS).write_text(json.dumps({**self.facts, **results}, indent=1) + "\n")
        distributed.barrier()
        for file in (self._pixels, self._tokens, self._done):
            file.close()
        self._workers.shutdown()
        if distributed.is_main():
            shutil.rmtree(self.part)

    def _write_npz(self, labels: np.ndarray) -> None:
        """`arr_0` uint8 [count, S, S, 3] as evaluators expect it, `labels`, `tokens`; memory stays small."""
        temporary = self.folder / f".{ARRAYS}.part.npz"
        np.savez(temporary, arr_0=self._pixels.rows, labels=labels, tokens=self._tokens.rows)
        os.replace(temporary, self.folder / ARRAYS)


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free
