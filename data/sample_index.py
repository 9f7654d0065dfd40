"""Where the samples of many shards lie, in memory-mapped files that all processes and workers of a node share.

A folder holds `index.json` and files without a header, little-endian: `starts` (int64 [shards + 1], the first sample of
every shard, and the number of samples), `offsets` and `sizes` of the images (int64 [n]), and if any sample has them
`labels` (int64 [n]), `caption_offsets` (int64 [n]) and `caption_sizes` (int32 [n]).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import distributed
from common.console import count, progress, warn
from data.shards import Shards
from data.tar_index import NO_CAPTION, NO_LABEL, Notes, ShardIndex
from storage.files import WriteError, errors_named, user_cache_folder, write_json
from storage.json_files import try_json
from storage.locks import exclusive
from storage.tar_members import read_shards

_VERSION = 2
_COLUMNS = {
    "offsets": "<i8",
    "sizes": "<i8",
    "labels": "<i8",
    "caption_offsets": "<i8",
    "caption_sizes": "<i4",
}


@dataclass
class Facts:
    """What a look at all samples would tell."""

    images: int = 0  # with those outside the limits
    count: int = 0  # within them
    labelled: int = 0
    captioned: int = 0
    largest_label: int = NO_LABEL
    largest_at: int = 0  # the first sample that has it
    largest_shard: int = 0  # bytes
    shard_bytes: int = 0  # of all shards
    notes: Notes = field(default_factory=Notes)

    def add(self, index: ShardIndex, size: int, name: str) -> None:
        """Count the samples of one more shard, of ``size`` bytes."""
        self.notes.extend(Notes.from_tree(json.loads(str(index.notes))), f"{name}: ")
        self.largest_shard, self.shard_bytes = max(self.largest_shard, size), self.shard_bytes + size
        self.labelled += int((index.labels != NO_LABEL).sum())
        self.captioned += int((index.caption_offsets != NO_CAPTION).sum())
        if len(index.labels) and index.labels.max() > self.largest_label:
            self.largest_label = int(index.labels.max())
            self.largest_at = self.count + int(index.labels.argmax())
        self.count += len(index.labels)


class SampleIndex:
    """An index in a folder, mapped; with ``held`` read into memory, so that the folder may go.

    Raises:
        ValueError: the folder holds another index than that of ``stamp``.
    """

    def __init__(self, folder: Path, stamp: str, *, held: bool = False) -> None:
        head = _head(folder)
        if head.get("stamp") != stamp:
            raise ValueError(f"{folder} is not the index it was when the program started; start it again")
        self.folder, self.stamp, self.held = folder, stamp, held
        facts = head["facts"]
        self.facts = Facts(**{**facts, "notes": Notes.from_tree(facts["notes"])})
        self.starts = self._column("starts", "<i8")
        self.offsets, self.sizes = self._column("offsets"), self._column("sizes")
        self.labels = self._column("labels") if self.facts.labelled else None
        captioned = self.facts.captioned > 0
        self.caption_offsets = self._column("caption_offsets") if captioned else None
        self.caption_sizes = self._column("caption_sizes") if captioned else None

    def __reduce__(self) -> str | tuple:
        # Workers that are not forked open the files again: a pickled memory map would carry all samples along.
        return super().__reduce__() if self.held else (SampleIndex, (self.folder, self.stamp))

    def _column(self, name: str, kind: str = "") -> np.ndarray:
        path, kind = self.folder / name, kind or _COLUMNS[name]
        # Files of no bytes cannot be mapped.
        return np.fromfile(path, kind) if self.held or not path.stat().st_size else np.memmap(path, kind, "r")

    def shard_of(self, sample: int) -> int:
        """Number of the shard that holds a sample."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1


def open_samples(shards: Shards, *, keep: bool, **limits: float | None) -> SampleIndex:
    """Index of all samples within the limits of ``ShardIndex.within``.

    Every process calls it; the first one of every node finds or makes it, and the others wait.

    Args:
        keep: beside the first shard, with remote shards in their cache; in the user's cache folder if it is read-only.
            Otherwise, or if both are, every process holds an index of its own in memory.

    Raises:
        As ``Shards.stamp`` and ``Shards.index``.
    """
    own: list[SampleIndex] = []

    def prepare() -> tuple[Path, str] | None:
        own.append(_find_or_make(shards, keep, limits))
        return None if own[0].held else (own[0].folder, own[0].stamp)

    place = distributed.on_local_main(prepare)
    if own:
        return own[0]
    return SampleIndex(*place) if place is not None else _find_or_make(shards, False, limits)


def _find_or_make(shards: Shards, keep: bool, limits: Mapping[str, float | None]) -> SampleIndex:
    identity = json.dumps([_VERSION, shards.paths, shards.label_key, limits])
    stamp = hashlib.sha256(identity.encode())
    for line in read_shards(shards.stamp, shards.paths):
        stamp.update(line.encode("utf-8", "surrogateescape"))
    name = f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.samples"
    places = [shards.home / name, user_cache_folder() / "shards" / name]
    for place in places:
        if _head(place).get("stamp") == stamp.hexdigest():
            return SampleIndex(place, stamp.hexdigest())
    reason: WriteError | None = None
    for place in places if keep else []:
        try:
            _make(place, shards, stamp.hexdigest(), limits)
            return SampleIndex(place, stamp.hexdigest())
        except WriteError as error:  # a read-only or full disk
            reason = error
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder) / name, shards, stamp.hexdigest(), limits)
        index = SampleIndex(Path(folder) / name, stamp.hexdigest(), held=True)
    if reason is not None:
        images = count(index.facts.count)
        warn(f"the index of {images} images cannot be kept, so every process holds its own: {reason}")
    return index


def _head(folder: Path) -> dict[str, Any]:
    """What is said about a whole index; empty if there is none."""
    return try_json(folder / "index.json")


def _make(place: Path, shards: Shards, stamp: str, limits: Mapping[str, float | None]) -> None:
    """Write the index whole or not at all; raises WriteError, and what reading the shards raises."""
    lock = place.with_name(f".{place.name}.lock")
    with ExitStack() as stack:
        with suppress(OSError):  # without locks several nodes may make it, each for itself
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(lock))
            for left in place.parent.glob(f".{place.name}.*.part"):  # by a killed process
                shutil.rmtree(left, ignore_errors=True)
        if _head(place).get("stamp") == stamp:  # made while this process waited
            return
        try:
            with SampleIndexWriter(place) as writer:
                indexed = read_shards(
                    lambda path: (shards.index(path), shards.size(path), os.path.basename(path)), shards.paths
                )
                for indexed_shard in progress(
                    indexed, "indexing shards", total=len(shards.paths), unit="shard", delay=3.0
                ):
                    writer.add(*indexed_shard, limits)
                writer.finish(stamp)
        finally:
            lock.unlink(missing_ok=True)  # those who wait for it look first whether the index is there


class SampleIndexWriter:
    """Appends shard after shard to the files of an unfinished index; raises WriteError."""

    def __init__(self, place: Path) -> None:
        self._place, self._unfinished = place, place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
        self.facts, self._files = Facts(), {}

    def __enter__(self) -> SampleIndexWriter:
        with errors_named(self._place):
            self._unfinished.mkdir(parents=True)
            names = ("starts", *_COLUMNS)
            self._files = {name: open(self._unfinished / name, "wb") for name in names}  # noqa: SIM115
            np.zeros(1, "<i8").tofile(self._files["starts"])
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk has been reported
                file.close()
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def add(
        self, index: ShardIndex, size: int, name: str = "", limits: Mapping[str, float | None] | None = None
    ) -> None:
        """Append the samples of the next shard, of ``size`` bytes, that are within the limits."""
        self.facts.images += len(index.labels)
        index = index.within(**limits) if limits else index
        self.facts.add(index, size, name)
        with errors_named(self._place):
            for name, kind in _COLUMNS.items():
                self._files[name].write(getattr(index, name).astype(kind).tobytes())
            self._files["starts"].write(np.array([self.facts.count], "<i8").tobytes())

    def finish(self, stamp: str) -> None:
        """Give the index its name."""
        empty = [] if self.facts.labelled else ["labels"]
        empty += [] if self.facts.captioned else ["caption_offsets", "caption_sizes"]
        with errors_named(self._place):
            for name, file in self._files.items():
                file.close()
                if name in empty:
                    (self._unfinished / name).unlink()
            facts = {**asdict(self.facts), "notes": self.facts.notes.to_tree()}
            write_json(self._unfinished / "index.json", {"stamp": stamp, "facts": facts})
            old = self._unfinished.with_suffix(".old.part")
            if self._place.exists():  # of shards that have changed; whoever has it mapped keeps it
                self._place.rename(old)
            os.replace(self._unfinished, self._place)
            shutil.rmtree(old, ignore_errors=True)
