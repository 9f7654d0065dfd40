"""The shards of one split: which images go into which, which are finished, and the manifest of all of them."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.config import first_difference
from data.packing.imagenet_labels import count_warnings
from data.packing.originals import Originals
from data.packing.pack_shards import PackSettings, ShardRecord, shard_bytes
from data.tar_index import NO_LABEL
from storage.files import write_json
from storage.json_files import read_json

_FACTS = "facts.json"
PROBE = ".probe-"  # folders of shards that are thrown away


@dataclass
class ShardPlan:
    """Shards `<prefix>-000000.tar`, ... in a folder.

    `facts` are what the shards depend on: shards with other facts are not continued.
    """

    split: str
    images: Originals
    folder: Path
    prefix: str
    per_shard: int
    seed: int | None  # of the order; None keeps that in which the images were found
    settings: PackSettings
    records: dict[int, ShardRecord] = field(default_factory=dict)  # of finished shards

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the shards depend on."""
        own = {"images": len(self.images), "fingerprint": self.images.fingerprint()}
        options = {"images_per_shard": self.per_shard, "seed": self.seed}
        return {**own, **options, "json": self.settings.json, "pixels": self.settings.pixels}

    @property
    def shards(self) -> int:
        """How many there are in the end."""
        return -(-len(self.images) // self.per_shard)

    @property
    def pattern(self) -> str:
        """For the option `path` of a data set."""
        last = f"{{000000..{self.shards - 1:06d}}}" if self.shards > 1 else "000000"
        return str(self.folder / f"{self.prefix}-{last}.tar")

    @property
    def manifest(self) -> Path:
        """Describes the finished shards."""
        return self.folder / f"{self.prefix}.json"

    @property
    def _notes(self) -> Path:
        return self.folder / f".{self.prefix}.progress"

    def shard(self, number: int) -> Path:
        """Path of a shard."""
        return self.folder / f"{self.prefix}-{number:06d}.tar"

    def missing(self) -> list[int]:
        """Numbers of the shards to be made."""
        return [number for number in range(self.shards) if number not in self.records]

    def bytes_needed(self) -> int:
        """That the missing shards will take, about."""
        whole = shard_bytes(len(self.images), self.images.total_bytes(), self.settings)
        return round(whole * len(self.missing()) / self.shards)

    def part(self, number: int) -> Originals:
        """The images of a shard, in their order."""
        if not hasattr(self, "_order"):
            order = self.images.order(self.seed)
            self._order = order.__getitem__ if isinstance(order, range) else order.example
        positions = range(number * self.per_shard, min((number + 1) * self.per_shard, len(self.images)))
        return self.images.take([self._order(position) for position in positions])

    # ---- what is finished ----------------------------------------------------------------------------------------

    def find_finished(self, *, overwrite: bool) -> None:
        """Take up what an earlier job has left; raises ValueError if that was made of other images or otherwise."""
        manifest = _read(self.manifest, facts=dict, shards=list, classes=list)
        facts = manifest.get("facts") or _read(self._notes / _FACTS)
        difference = first_difference(facts, self.facts, self.prefix) if facts else None
        if difference and not overwrite:
            raise ValueError(
                f"{self.folder} holds other shards of this name ({difference}); choose another output or name, or"
                " overwrite=true"
            )
        if difference:
            self._remove_all()
        else:
            found = dict(enumerate(manifest.get("shards", [])))
            found |= {int(note.stem): _note(note) for note in self._notes.glob("[0-9]*.json")}
            for number, record in found.items():
                path = self.shard(number)
                if record and path.is_file() and path.stat().st_size == record["bytes"]:
                    self.records[number] = ShardRecord(**record)
        self.remove_unfinished()

    def begin(self) -> None:
        """Note what the shards depend on, before the first is made."""
        self._notes.mkdir(parents=True, exist_ok=True)
        write_json(self._notes / _FACTS, self.facts)

    def add(self, number: int, record: ShardRecord) -> None:
        """Note that a shard is finished."""
        self.records[number] = record
        write_json(self._notes / f"{number:06d}.json", vars(record))

    def remove_unfinished(self) -> None:
        """Remove what killed workers have left."""
        for path in self.folder.glob(f".{self.prefix}-*.part"):
            path.unlink(missing_ok=True)
        for path in self.folder.glob(f"{PROBE}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove_all(self) -> None:
        self.manifest.unlink(missing_ok=True)
        shutil.rmtree(self._notes, ignore_errors=True)
        for path in self.folder.glob(f"{self.prefix}-*"):
            if re.fullmatch(re.escape(self.prefix) + r"-\d{6}\.tar(\.index)?", path.name):
                path.unlink()

    # ---- the manifest --------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Write the manifest, and return it: counts, hashes, classes, and what is odd."""
        records = [self.records[number] for number in range(self.shards)]
        damaged, odd = defaultdict(list), defaultdict(list)
        for record in records:
            for name, reason, _ in record.damaged:
                damaged[reason].append(name)
            for name, what in record.odd:
                odd[what].append(name)
        synsets = {int(label): s for record in records for label, s in record.synsets.items()}
        classes = self._classes(records, synsets)
        manifest = {
            "split": self.split,
            "path": Path(self.pattern).name,
            "images": sum(record.images for record in records),
            "bytes": sum(record.bytes for record in records),
            "made_of": self.images.what,
            "facts": self.facts,
            "warnings": self.count_warnings(classes),
            "damaged_and_left_out": damaged,
            "odd_and_kept": odd,
            "other_files_left_out": self.images.left_out.to_tree(),
            "classes": classes,
            "shards": [vars(record) | {"synsets": {}} for record in records],
        }
        write_json(self.manifest, manifest)
        shutil.rmtree(self._notes, ignore_errors=True)
        return manifest

    def _classes(self, records: list[ShardRecord], synsets: Mapping[int, str]) -> list[dict[str, Any]]:
        labels = self.images.labels
        counts = np.bincount(labels[labels != NO_LABEL], minlength=len(self.images.classes))
        for label in (label for record in records for _, _, label in record.damaged if label != NO_LABEL):
            counts[label] -= 1
        before = {entry["label"]: entry.get("synset") for entry in _read(self.manifest).get("classes", [])}
        found = []
        for label, (key, name) in enumerate(zip(self.images.classes, self.settings.classes, strict=True)):
            synset = key if self.images.synsets else synsets.get(label) or before.get(label)
            entry = {"label": label, "synset": synset, "name": name, "images": int(counts[label])}
            found.append({k: v for k, v in entry.items() if v is not None})
        return found

    def count_warnings(self, classes: list[dict[str, Any]] | None = None) -> list[str]:
        """How the images differ from those of ImageNet, if their classes are synsets."""
        classes = self._classes([], {}) if classes is None else classes
        synsets = [entry["synset"] for entry in classes if "synset" in entry]
        if not synsets or len(synsets) < len(classes):
            return []
        found = count_warnings(self.split, {e["synset"]: e["images"] for e in classes})
        if synsets != sorted(synsets):
            found.append("the labels do not count the sorted synsets, as those of published models do")
        return found


def _read(path: Path, **types: type) -> dict[str, Any]:
    return read_json(path, **types) if path.is_file() else {}


def _note(path: Path) -> dict[str, Any]:
    """A note about a finished shard; a damaged one is as good as none."""
    try:
        return read_json(
            path, file=str, images=int, bytes=int, sha256=str, damaged=list, odd=list, synsets=dict
        )
    except ValueError:
        return {}
