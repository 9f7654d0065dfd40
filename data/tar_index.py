"""Where the samples of a tar shard lie, found in one pass over its headers and kept for the next run."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from storage.files import atomic_file, user_cache_folder
from storage.image_names import IMAGE_SUFFIXES
from storage.tar_members import TarReader

_LOG = logging.getLogger(__name__)
_VERSION = 2  # of the kept index; another one is made anew
LABEL_KEYS = ("label", "cls", "class_id", "class")
NO_LABEL = -1
NO_CAPTION = -1


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
        return ShardIndex(**{name: array[kept] for name, array in vars(self).items()})


def open_index(shard: Path, *, label_key: str | None = None, keep: bool = True) -> ShardIndex:
    """Index of a shard, from the file kept beside it or in the user's cache folder, or made anew.

    Args:
        shard: an uncompressed tar file.
        label_key: key of the label in ``.json`` members; the first of LABEL_KEYS that is there if None.
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
        with np.load(place, allow_pickle=False) as arrays:
            if str(arrays["stamp"]) != _stamp(state, label_key):
                return None
            return ShardIndex(**{field.name: arrays[field.name] for field in fields(ShardIndex)})
    except Exception:  # whatever is wrong with a kept index, making it anew is right
        return None


def read_published(content: bytes, size: int, label_key: str | None) -> ShardIndex | None:
    """An index that was made elsewhere of a copy of a shard of ``size`` bytes; None if it is of another one."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            version, other_size, *_, other_key = json.loads(str(arrays["stamp"]))
            if (version, other_size, other_key) != (_VERSION, size, label_key):
                return None
            return ShardIndex(**{field.name: arrays[field.name] for field in fields(ShardIndex)})
    except Exception:  # as above
        return None


def _stamp(state: Sequence[int | str], label_key: str | None) -> str:
    return json.dumps([_VERSION, *state, label_key])


def make_index(shard: Path, *, label_key: str | None = None) -> ShardIndex:
    """Read all headers of a shard and the label members; errors as in ``open_index``."""
    images: dict[str, tuple[str, int, int]] = {}
    captions: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    sides: dict[str, tuple[int, int]] = {}
    with TarReader(shard) as tar:
        for name, offset, size in tar.members():
            # A sample's members share what stands before the first dot of the file name.
            folder, slash, base = name.rpartition("/")
            stem, _, ending = base.partition(".")
            key, ending = folder + slash + stem, f".{ending.lower()}"
            if ending in IMAGE_SUFFIXES:
                images[key] = (name, offset, size)
            elif ending == ".txt":
                captions[key] = (offset, size)
            elif ending in (".cls", ".json"):
                content = tar.read(offset, size)
                record = _record(content) if ending == ".json" else {}
                label = _label(content if ending == ".cls" else _first(record, label_key))
                if label != NO_LABEL:
                    labels[key] = label
                if ending == ".json":
                    sides[key] = (_side(record, "original_height"), _side(record, "original_width"))
    return ShardIndex(
        names=np.array([name.encode() for name, _, _ in images.values()], dtype=np.bytes_),
        offsets=np.array([offset for _, offset, _ in images.values()], dtype=np.int64),
        sizes=np.array([size for _, _, size in images.values()], dtype=np.int64),
        labels=np.array([labels.get(key, NO_LABEL) for key in images], dtype=np.int64),
        caption_offsets=np.array([captions.get(key, (NO_CAPTION, 0))[0] for key in images], dtype=np.int64),
        caption_sizes=np.array([captions.get(key, (NO_CAPTION, 0))[1] for key in images], dtype=np.int32),
        heights=np.array([sides.get(key, (0, 0))[0] for key in images], dtype=np.int32),
        widths=np.array([sides.get(key, (0, 0))[1] for key in images], dtype=np.int32),
    )


def _record(content: bytes) -> dict[str, Any]:
    """A ``.json`` member, empty if it cannot be read."""
    try:
        record = json.loads(content)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _first(record: dict[str, Any], label_key: str | None) -> Any:
    keys = [label_key] if label_key else LABEL_KEYS
    return next((record[key] for key in keys if key in record), None)


def _label(value: Any) -> int:
    try:
        label = int(value)
        return label if label >= 0 else NO_LABEL
    except (ValueError, TypeError, OverflowError):
        return NO_LABEL


def _side(record: dict[str, Any], key: str) -> int:
    try:
        side = int(record.get(key) or 0)
        return side if 0 <= side < 2**31 else 0
    except (ValueError, TypeError, OverflowError):
        return 0
