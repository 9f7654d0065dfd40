"""Packs images into tar shards of the WebDataset layout: their bytes as they are, with label and facts beside them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.images import UnreadableImage, read_head
from data.packing.imagenet_labels import synset_in
from data.packing.originals import Original, Originals
from data.source import CorruptSample
from data.tar_index import NO_LABEL, open_index
from data.transforms import decode_image
from storage.files import atomic_file
from storage.image_names import IMAGE_SUFFIXES, suffix
from storage.tar_writer import TarWriter, stored_bytes

# Member names of formats; what is stored under another suffix keeps its own.
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
_SUFFIXES |= {
    "MPO": ".jpg",
    "AVIF": ".avif",
    "JPEG2000": ".jp2",
    "PPM": ".ppm",
}  # MPO: several JPEGs of a camera
_SAME = {".jpg": {".jpeg", ".jpe", ".jfif"}, ".tif": {".tiff"}, ".bmp": {".dib"}, ".jp2": {".j2k"}}
_SAME[".ppm"] = {".pgm", ".pbm", ".pnm"}
_PLAIN_MODES = ("RGB", "L")


class Stopped(Exception):
    """The job was asked to stop in the middle of a shard."""


@dataclass
class ShardRecord:
    """What is known of one finished shard; plain values."""

    file: str
    images: int = 0
    bytes: int = 0
    sha256: str = ""
    damaged: list[tuple[str, str, int]] = field(default_factory=list)  # name, reason, label; not in the shard
    odd: list[tuple[str, str]] = field(default_factory=list)  # name, what is odd; in the shard
    synsets: dict[str, str] = field(default_factory=dict)  # by label, as the names of the images say


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    Args:
        classes: names of the classes, for the `.json` members.
        json: write `.json` members.
        pixels: decode every image wholly, instead of reading its header.
    """

    classes: tuple[str, ...]
    json: bool = True
    pixels: bool = False


def pack_shard(
    path: Path, images: Originals, settings: PackSettings, stopped: Callable[[], bool] = lambda: False
) -> ShardRecord:
    """Write the images in their order into a shard, with its index, whole or not at all.

    Images that cannot be read are left out and named in the record.

    Raises:
        WriteError: the disk is full.
        Stopped: `stopped` said so.
        ValueError: the shard does not read as it was written.
    """
    record, keys, labels = ShardRecord(path.name), set(), []
    with atomic_file(path) as temporary:
        with TarWriter(temporary) as tar:
            for index in range(len(images)):
                if stopped():
                    raise Stopped
                label = int(images.labels[index])
                try:
                    image = images.read(index)
                    head = _look(image, settings.pixels)
                except (OSError, CorruptSample) as error:
                    reason = error.reason if isinstance(error, CorruptSample) else str(error)
                    record.damaged.append((images.place(index), reason, label))
                    continue
                _note(record, image, head, label)
                for member, content in _members(image, head, label, settings, keys):
                    tar.add(member, content)
                labels.append(label)
        record.images, record.bytes, record.sha256 = len(labels), tar.size, tar.sha256
    _check(path, labels)
    return record


@dataclass(frozen=True)
class _Head:
    suffix: str  # of the member
    format: str
    mode: str
    width: int
    height: int


def _look(image: Original, pixels: bool) -> _Head:
    """What the header of an image says; raises CorruptSample."""
    try:
        found = read_head(image.content)
    except UnreadableImage as error:
        raise CorruptSample(image.name, str(error)) from error
    own = suffix(image.name)
    kind = _SUFFIXES.get(found.format, own if own in IMAGE_SUFFIXES else "")
    head = _Head(kind, found.format, found.mode, *found.size)
    if not head.suffix:
        raise CorruptSample(image.name, f"the format {head.format} is not read by data sets")
    if pixels:
        decode_image(image.content, image.name)
    return head


def _note(record: ShardRecord, image: Original, head: _Head, label: int) -> None:
    own = suffix(image.name)
    if own and own != head.suffix and own not in _SAME.get(head.suffix, ()):
        record.odd.append((image.name, f"a {head.format} file named {own}"))
    if head.mode not in _PLAIN_MODES:
        record.odd.append((image.name, f"mode {head.mode}"))
    synset = synset_in(image.name)
    if synset and label != NO_LABEL:
        known = record.synsets.setdefault(str(label), synset)
        if known != synset:
            record.odd.append(
                (image.name, f"its label is {label}, which others of its shard have as {known}")
            )


def _members(
    image: Original, head: _Head, label: int, settings: PackSettings, keys: set[str]
) -> list[tuple[str, bytes]]:
    """(name, content) of the members of one sample."""
    key = _key(image.name, keys)
    found = [(f"{key}{head.suffix}", image.content)]
    if label != NO_LABEL:
        found.append((f"{key}.cls", str(label).encode()))
    if image.caption is not None:
        found.append((f"{key}.txt", image.caption.encode()))
    if settings.json:
        facts: dict[str, Any] = {"filename": os.fsencode(image.name).decode("utf-8", "backslashreplace")}
        if label != NO_LABEL:
            facts |= {"label": label, "class_name": settings.classes[label]}
        facts |= {"original_width": head.width, "original_height": head.height}
        found.append((f"{key}.json", json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")))
    return found


def _key(name: str, keys: set[str]) -> str:
    """Name of a sample: that of the image without folder, suffix and further dots, once per shard."""
    stem = name.rpartition("/")[2]
    stem = stem[: len(stem) - len(suffix(stem))] or "image"
    stem = re.sub(r"[^\w\-+=@,]", "_", os.fsencode(stem).decode("utf-8", "replace"))[:120]
    key, number = stem, 1
    while key in keys:
        number += 1
        key = f"{stem}-{number}"
    keys.add(key)
    return key


def _check(path: Path, labels: list[int]) -> None:
    """Index a new shard as training does, and compare; raises ValueError."""
    index = open_index(path)
    if len(index.labels) != len(labels) or not np.array_equal(index.labels, np.array(labels, dtype=np.int64)):
        raise ValueError(
            f"{path} does not read as it was written: {len(index.labels)} of {len(labels)} images"
        )


def shard_bytes(images: int, content: int, settings: PackSettings) -> int:
    """Bytes that shards of so many images of `content` bytes together will take, indices included."""
    each = stored_bytes(256) + stored_bytes(4) + (stored_bytes(200) if settings.json else 0) + 100
    return content + images * each
