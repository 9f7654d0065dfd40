"""Where the samples of a tar shard lie, found in one pass over its headers and kept for the next run."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from storage.arrays import ArrayFile
from storage.files import atomic_file, user_cache_folder
from storage.json_files import parse_json
from storage.left_out import LeftOut
from storage.tar_samples import read_samples

_LOG = logging.getLogger(__name__)
_LONGEST_STAMP = 1 << 16
_VERSION = 3  # of the kept index; another one is made anew
NO_LABEL = -1
NO_CAPTION = -1


@dataclass
class Notes:
    """What of one or many shards is no sample, or has no label."""

    left_out: LeftOut = field(default_factory=LeftOut)
    unlabelled: LeftOut = field(default_factory=LeftOut)
    conflicts: LeftOut = field(default_factory=LeftOut)

    def extend(self, other: Notes, prefix: str) -> None:
        """Count what is noted of another shard, whose members get a prefix."""
        for mine, more in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.extend(more, prefix)

    def to_tree(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {name: left.to_tree() for name, left in vars(self).items()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Notes:
        """The inverse of ``to_tree``."""
        return cls(**{name: LeftOut.from_tree(left) for name, left in tree.items()})


@dataclass(frozen=True)
class ShardIndex:
    """Samples of one shard in the order of the archive."""

    names: np.ndarray  # bytes [n], names of the image members
    offsets: np.ndarray  # int64 [n], first byte of the image in the shard
    sizes: np.ndarray  # int64 [n], its bytes
    labels: np.ndarray  # int64 [n], NO_LABEL if the label is missing or unreadable
    caption_offsets: np.ndarray  # int64 [n], first byte of the caption in the shard, or NO_CAPTION
    caption_sizes: np.ndarray  # int32 [n], its bytes
    # int32 [n], pixels before the image was put into the shard (``original_height`` and ``original_width`` of the
    # ``.json`` member), 0 if unknown.
    heights: np.ndarray
    widths: np.ndarray
    notes: np.ndarray = field(default_factory=lambda: np.array("{}"))  # str [], `Notes` as JSON

    def within(self, *, max_aspect: float | None, min_side: int | None) -> ShardIndex:
        """The samples whose original images keep the limits; without any limit all, else those of known size."""
        if max_aspect is None and min_side is None:
            return self
        longer, shorter = np.maximum(self.heights, self.widths), np.minimum(self.heights, self.widths)
        kept = shorter > 0
        if max_aspect is not None:
            kept &= longer <= max_aspect * shorter
        if min_side is not None:
            kept &= longer >= min_side
        arrays = {name: array[kept] for name, array in vars(self).items() if name != "notes"}
        return ShardIndex(**arrays, notes=self.notes)


def open_index(shard: Path, *, label_key: str | None = None, keep: bool = True) -> ShardIndex:
    """Index of a shard, from the file kept beside it or in the user's cache folder, or made anew.

    Args:
        shard: an uncompressed tar file.
        label_key: as for ``storage.tar_samples.read_samples``.
        keep: write the index for the next run, if it can be written.

    Raises:
        FileNotFoundError: the shard does not exist.
        ValueError: it is cut short or not a tar file.
    """
    if not shard.is_file():
        raise FileNotFoundError(f"shard {shard} does not exist")
    status = shard.stat()
    elsewhere = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:24]
    places = [shard.with_name(f"{shard.name}.index"), user_cache_folder() / "shards" / f"{elsewhere}.index"]
    state = [status.st_size, status.st_mtime_ns]
    for place in places:
        index = read_index(place, state, label_key)
        if index is not None:
            return index
    index = make_index(shard, label_key=label_key)
    for place in places if keep else []:
        try:
            write_index(place, index, state, label_key)
            break
        except OSError as error:
            _LOG.debug("index of %s is not kept at %s: %s", shard, place, error)
    return index


def write_index(place: Path, index: ShardIndex, state: Sequence[int | str], label_key: str | None) -> None:
    """Keep the index of a shard that is in a ``state``, such as its size and time; raises WriteError."""
    with atomic_file(place) as temporary, open(temporary, "wb") as file:
        np.savez(file, stamp=np.array(_stamp(state, label_key)), **vars(index))


def read_index(place: Path, state: Sequence[int | str], label_key: str | None) -> ShardIndex | None:
    """A kept index, None unless it was made of the shard in this state."""
    try:
        with ArrayFile(place) as arrays:
            if str(arrays.read("stamp")) != _stamp(state, label_key):
                return None
            return ShardIndex(**{f.name: arrays.read(f.name) for f in fields(ShardIndex)})
    except Exception:  # whatever is wrong with a kept index, making it anew is right
        return None


def read_published(content: bytes, size: int, label_key: str | None) -> ShardIndex | None:
    """An index that was made elsewhere of a copy of a shard of ``size`` bytes; None if it is of another one."""
    try:
        with ArrayFile(io.BytesIO(content)) as arrays:
            version, other_size, *_, other_key = parse_json(str(arrays.read("stamp", _LONGEST_STAMP)))
            if (version, other_size, other_key) != (_VERSION, size, label_key):
                return None
            index = ShardIndex(**{f.name: arrays.read(f.name) for f in fields(ShardIndex)})
        return index if _is_sound(index, size) else None
    except Exception:  # as above
        return None


def _is_sound(index: ShardIndex, size: int) -> bool:
    """Whether an index of somebody else could be one of a shard of ``size`` bytes."""
    Notes.from_tree(parse_json(str(index.notes)))  # raises if it is none
    columns = {name: array for name, array in vars(index).items() if name != "notes"}
    if len({array.shape for array in columns.values()}) != 1 or index.names.ndim != 1:
        return False
    if columns.pop("names").dtype.kind != "S" or any(array.dtype.kind != "i" for array in columns.values()):
        return False
    places = [(index.offsets, index.sizes), (index.caption_offsets + 1, index.caption_sizes)]
    inside = all(
        (at >= 0).all() and (count >= 0).all() and (at <= size - count + 1).all() for at, count in places
    )
    least = (index.labels.min(initial=0), index.heights.min(initial=0), index.widths.min(initial=0))
    return inside and (index.offsets <= size - index.sizes).all() and min(least) >= NO_LABEL


def _stamp(state: Sequence[int | str], label_key: str | None) -> str:
    return json.dumps([_VERSION, *state, label_key])


def make_index(shard: Path, *, label_key: str | None = None) -> ShardIndex:
    """Read all headers of a shard and the label members; errors as in ``open_index``."""
    samples = read_samples(shard, label_key=label_key)
    found = samples.found
    captions = [sample.caption or (NO_CAPTION, 0) for sample in found]
    notes = Notes(samples.left_out, samples.unlabelled, samples.conflicts)
    return ShardIndex(
        names=np.array([os.fsencode(sample.name) for sample in found], dtype=np.bytes_),
        offsets=np.array([sample.offset for sample in found], dtype=np.int64),
        sizes=np.array([sample.size for sample in found], dtype=np.int64),
        labels=np.array([NO_LABEL if s.label is None else s.label for s in found], dtype=np.int64),
        caption_offsets=np.array([offset for offset, _ in captions], dtype=np.int64),
        caption_sizes=np.array([size for _, size in captions], dtype=np.int32),
        heights=np.array([sample.height for sample in found], dtype=np.int32),
        widths=np.array([sample.width for sample in found], dtype=np.int32),
        notes=np.array(json.dumps(notes.to_tree())),
    )
