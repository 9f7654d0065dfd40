"""Which members of a tar shard are samples: the one answer for training, tokenizing, reconstruction and evaluation.

The layout is that of WebDataset: members with the same folder and the same name up to the first dot are one sample, and
what follows that dot says what a member is: an image suffix, `cls` or `json` for the label, `txt` for the caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from storage.image_names import IMAGE_SUFFIXES, is_hidden, suffix
from storage.image_tree import HIDDEN
from storage.json_files import parse_json
from storage.labels import class_number
from storage.left_out import LeftOut
from storage.tar_members import Member, TarReader

LABEL_KEYS = ("label", "cls", "class_id", "class")
DOTTED = "a key ends at the first dot of the name, and what follows it here is not one image suffix"
SECOND = f"a second image of one sample ({', '.join(IMAGE_SUFFIXES[:4])}, ... is the order of preference)"
REPLACED = "a later member has the same name"
NO_IMAGE = "a sample without an image"
LATE = "after the end mark of the archive (tar files that were joined?)"
KINDS = {"link": "a link to another member", "sparse": "a file with holes", "special": "no regular file"}
NO_LABEL = "an image without a label"
NO_NUMBER = "a label that is no whole number from 0"
CONFLICT = "labels of one sample that disagree"
_RANKS = {ending: rank for rank, ending in enumerate(IMAGE_SUFFIXES)}
_FIELDS = ("cls", "json", "txt")
_LONGEST_LABEL, _LONGEST_RECORD = 1 << 10, 1 << 26  # bytes


class TarSample(NamedTuple):
    """One sample of a shard."""

    name: str  # of the image member
    offset: int  # of the image in the shard
    size: int
    label: int | None
    caption: tuple[int, int] | None  # offset and size of its text
    height: int  # ``original_height`` and ``original_width`` of the .json member, 0 if unknown
    width: int


@dataclass
class TarSamples:
    """The samples of a shard, in the order of its members."""

    found: list[TarSample] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    unlabelled: LeftOut = field(default_factory=LeftOut)  # samples whose label is missing or no class number
    conflicts: LeftOut = field(
        default_factory=LeftOut
    )  # samples whose labels disagree; they count as unlabelled


class _Label(NamedTuple):
    member: str
    number: int | None
    text: str  # as it is written, empty if there is none


def read_samples(shard: str | Path, *, label_key: str | None = None) -> TarSamples:
    """All samples of a shard, and what is none.

    Args:
        label_key: key of the label in ``.json`` members; ``.cls`` members are then not looked at. If None, the label is
            that of the ``.cls`` member and the first of LABEL_KEYS that holds a class number.

    Raises:
        FileNotFoundError: the shard does not exist.
        ValueError: it is cut short, damaged, or not an uncompressed tar file.
    """
    with TarReader(shard) as tar:
        shelf = _Shelf(tar, label_key)
        for member in tar.entries():
            shelf.put(member)
        return shelf.samples()


class _Shelf:
    """Members by the keys of their samples."""

    def __init__(self, tar: TarReader, label_key: str | None) -> None:
        self.tar, self.label_key, self.result = tar, label_key, TarSamples()
        self.images: dict[str, Member] = {}
        self.captions: dict[str, Member] = {}
        self.labels: dict[str, dict[str, _Label]] = {}  # by key and name of the member
        self.sides: dict[str, tuple[int, int]] = {}
        self.missed: set[str] = set()  # keys whose image was left out
        self.folders: dict[str, None] = {}

    def put(self, member: Member) -> None:
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        ending, is_image = ending.lower(), suffix(base) in _RANKS
        if not is_image and ending not in _FIELDS:
            return
        key = f"{_plain(folder)}/{stem}"
        if reason := _reason(member, base, ending, is_image):
            if is_image or reason != HIDDEN:
                self._leave_out(reason, member.name, key)
            return
        self.folders[folder] = None
        if is_image:
            self._put_image(key, member)
        elif ending == "txt":
            self.captions[key] = member
        else:
            self._put_label(key, ending, member)

    def _leave_out(self, reason: str, name: str, key: str) -> None:
        self.result.left_out.add(reason, name)
        self.missed.add(key)

    def _put_image(self, key: str, member: Member) -> None:
        other = self.images.get(key)
        if other is not None and other.name == member.name:
            self.result.left_out.add(REPLACED, other.name)
        elif other is not None:
            preferred, second = (other, member) if _rank(other) <= _rank(member) else (member, other)
            self.result.left_out.add(SECOND, second.name)
            member = preferred
        self.images[key] = member  # in the place of the first

    def _put_label(self, key: str, ending: str, member: Member) -> None:
        if ending == "json":
            record = _record(self.tar, member)
            self.sides[key] = (_side(record, "original_height"), _side(record, "original_width"))
            keys = [self.label_key] if self.label_key else LABEL_KEYS
            given = [(name, record[name]) for name in keys if record.get(name) is not None]
            number = next((n for _, value in given if (n := class_number(value)) is not None), None)
            text = ", ".join(f"{name} {json.dumps(value)[:40]}" for name, value in given)
        elif self.label_key is None:
            content = self.tar.read(member.offset, min(member.size, _LONGEST_LABEL + 1))
            number = class_number(content) if len(content) <= _LONGEST_LABEL else None
            text = repr(content[:40].decode("utf-8", "backslashreplace"))
        else:
            return
        self.labels.setdefault(key, {})[member.name] = _Label(member.name, number, text)

    def samples(self) -> TarSamples:
        hidden = _hidden_folders(self.folders)
        for key, image in self.images.items():
            if image.name.rpartition("/")[0] in hidden:
                self._leave_out(HIDDEN, image.name, key)
                continue
            caption = self.captions.get(key)
            self.result.found.append(
                TarSample(
                    image.name,
                    image.offset,
                    image.size,
                    self._label(key, image.name),
                    None if caption is None else (caption.offset, caption.size),
                    *self.sides.get(key, (0, 0)),
                )
            )
        for key in {**self.labels, **self.captions}:
            if key not in self.images and key not in self.missed:
                names = self.labels.get(key) or [self.captions[key].name]
                self.result.left_out.add(NO_IMAGE, next(iter(names)))
        return self.result

    def _label(self, key: str, image: str) -> int | None:
        labels = self.labels.get(key, {}).values()
        numbers = {label.number for label in labels if label.number is not None}
        if len(numbers) == 1:
            return numbers.pop()
        texts = sorted(f"{label.member}: {label.text}" for label in labels if label.text)
        if numbers:
            self.result.conflicts.add(CONFLICT, f"{image} ({'; '.join(texts)})")
        elif texts:
            self.result.unlabelled.add(NO_NUMBER, "; ".join(texts))
        else:
            self.result.unlabelled.add(NO_LABEL, image)
        return None


def _reason(member: Member, base: str, ending: str, is_image: bool) -> str:
    """Why a member is left out; empty for one that is used."""
    if member.late:
        return LATE
    if member.kind != "file":
        return KINDS[member.kind]
    if base[0] == ".":
        return HIDDEN
    return DOTTED if is_image and f".{ending}" not in _RANKS else ""


def _rank(member: Member) -> int:
    return _RANKS[suffix(member.name)]


@lru_cache(maxsize=1024)
def _plain(folder: str) -> str:
    """./a, /a and a are the same folder."""
    return "/".join(part for part in folder.split("/") if part not in ("", "."))


def _hidden_folders(folders: Iterable[str]) -> set[str]:
    """Those with a hidden part below the folder that all have in common: an archive may be of a hidden folder."""
    parts = {folder: _plain(folder).split("/") for folder in folders}
    if not any(is_hidden(part) for names in parts.values() for part in names):
        return set()
    first, last = min(parts.values()), max(parts.values())
    common = next(
        (n for n, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return {folder for folder, names in parts.items() if any(map(is_hidden, names[common:]))}


def _record(tar: TarReader, member: Member) -> dict[str, Any]:
    """A ``.json`` member, empty if it is no object."""
    try:
        record = parse_json(tar.read(member.offset, member.size)) if member.size <= _LONGEST_RECORD else None
    except ValueError:
        record = None
    return record if isinstance(record, dict) else {}


def _side(record: dict[str, Any], key: str) -> int:
    return class_number(record.get(key)) or 0
