"""A numbered collection of images as PNG files and one NPZ, written in any order by any number of processes.

Unfinished work lies in `unfinished.part/`, so that an interrupted job continues where it stopped. Pixels go straight to
their place in the NPZ, whose bytes depend on the images alone.
"""

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
from common.images import pil_to_tensor, read_image
from storage.files import save_png, write_json
from storage.npz import finish_npz
from storage.rows import FACTS as ROW_FACTS
from storage.rows import RowStore, differences, read_facts

FACTS, ARRAYS, UNFINISHED = "samples.json", "samples.npz", "unfinished.part"


class SampleStore:
    """Square uint8 images of `side` pixels and their tokens, as `<index:06d>.png`, `samples.npz` and `samples.json`.

    Every process opens the store. `facts` are what the images depend on: a folder with other facts is not continued,
    but replaced with `overwrite`.

    Raises:
        ValueError: the folder holds images with other facts, or the disk is too small for the arrays (the sizes of PNG
            files are not known in advance and not counted).
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
        self.count, self.png, self.npz = count, png, npz
        found = distributed.gather_objects(read_facts(self.folder / FACTS))[0]  # as the main process sees it
        other = differences(found, self.facts) if found is not None else ""
        self.complete = found is not None and not other
        if self.complete:
            if distributed.is_main():  # a job may have been killed while it cleaned up
                shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
            return
        if other and not overwrite:
            advice = "choose another output, or overwrite=true"
            raise ValueError(f"{self.folder} holds images made with other settings ({other}); {advice}")
        self._keeps_pixels = npz or not png  # PNG files alone need no array of pixels
        arrays = {"pixels": ((side, side, 3), "uint8")} if self._keeps_pixels else {}
        if distributed.is_main():
            self._take_back()
        self._store = RowStore(
            self.folder / UNFINISHED,
            count=count,
            arrays={**arrays, "tokens": ((num_tokens,), "int64")},
            facts=self.facts,
            overwrite=overwrite,
            archived=["pixels"] if npz else [],
            # In the NPZ: tokens, labels under two names, headers.
            extra_bytes=8 * count * (num_tokens + 2) + (1 << 16) if npz else 0,
        )
        if overwrite and self.missing == count:
            distributed.on_main(self._remove_old)
        self._workers = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
        self._written: deque[Future] = deque()
        # Images that wait to be written: at most 64 MiB of pixels, and enough to keep the threads busy.
        self._waiting = max(16, min(256, (1 << 26) // (3 * side * side)))

    def _take_back(self) -> None:
        """Move the NPZ back if a job ended after moving it to its place, but before writing the facts."""
        part, npz = self.folder / UNFINISHED, self.folder / ARRAYS
        found = read_facts(part / ROW_FACTS)
        if self.npz and found is not None and not differences(found, self.facts) and npz.is_file():
            pixels = part / "pixels.npz"
            if not pixels.exists():
                os.replace(npz, pixels)

    def _remove_old(self) -> None:
        old_pictures = (p for p in self.folder.glob("*.png") if p.stem.isdigit())
        for path in (*old_pictures, self.folder / FACTS, self.folder / ARRAYS):
            path.unlink(missing_ok=True)

    @property
    def missing(self) -> int:
        return self._store.missing

    def todo(self) -> np.ndarray:
        return self._store.todo()

    def put(self, indices: Sequence[int], images: torch.Tensor, tokens: torch.Tensor) -> None:
        """Store images uint8 [B, 3, S, S] with tokens [B, N] in the background; raises OSError of earlier images."""
        while len(self._written) > self._waiting:  # bounds the memory when writing is slow
            self._written.popleft().result()
        for index, image, row in zip(indices, images.cpu(), tokens.cpu(), strict=True):
            self._written.append(self._workers.submit(self._write, int(index), image, row.numpy()))

    def _write(self, index: int, image: torch.Tensor, tokens: np.ndarray) -> None:
        if self.png:
            save_png(self.folder / f"{index:06d}.png", image)
        pixels = {"pixels": image.permute(1, 2, 0).numpy()} if self._keeps_pixels else {}
        self._store.write(index, **pixels, tokens=tokens)

    def image(self, index: int) -> torch.Tensor:
        """One stored image, uint8 [3, S, S]; `flush` first."""
        if self._keeps_pixels:
            return torch.from_numpy(self._store.rows("pixels")[index].copy()).permute(2, 0, 1)
        return pil_to_tensor(read_image(self.folder / f"{index:06d}.png"))

    def flush(self) -> None:
        """Wait until all processes have written their images; raises OSError."""
        while self._written:
            self._written.popleft().result()
        distributed.barrier()

    def finish(self, labels: np.ndarray, **results: Any) -> None:
        """After `flush`: write the final files with labels [count], `results` beside the facts, and clean up.

        Raises:
            OSError: the disk is full (ValueError on other processes than the main one).
        """
        self._workers.shutdown()
        distributed.on_main(lambda: self._write_results(np.asarray(labels, dtype=np.int64), results))
        self._store.remove()

    def _write_results(self, labels: np.ndarray, results: Mapping[str, Any]) -> None:
        for path in self.folder.glob(".*.part"):  # left by killed jobs
            path.unlink()
        if self.npz:
            pixels, tokens = self._store.path("pixels"), self._store.path("tokens")
            finish_npz(
                pixels, {"arr_1": labels, "labels": labels, "tokens": tokens}
            )  # arr_0, arr_1: as in ADM
            os.replace(pixels, self.folder / ARRAYS)
        write_json(self.folder / FACTS, {**self.facts, **results})
