"""What a data set holds: each of its images decoded once, by the rules of training and evaluation."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from common.console import printable
from common.images import PixelRules, UnreadableImage, decode, has_more_pictures, pil_to_tensor
from data.source import CorruptSample
from data.transforms import center_crop
from storage.left_out import LeftOut

NO_LABEL = -1
SIDES = (64, 128, 256, 512)  # shorter sides that tokenizers want
ROWS, COLUMNS, SHOWN = 20, 8, 64  # classes and images of each in a contact sheet; images without classes
_SHOWN_GROUPS = 10
_SHARES = {"least": 0, "tenth": 10, "median": 50, "nine_tenths": 90, "most": 100}  # percentiles


@dataclass
class Examples:
    """Image files, however they are stored, with what is known about them."""

    count: int
    file: Callable[[int], tuple[str, bytes]]  # name and content of one; raises CorruptSample
    caption: Callable[[int], str | None] = lambda index: None  # raises CorruptSample
    labels: np.ndarray | None = None  # int64 [count], NO_LABEL where there is none; None: none at all
    class_names: Sequence[str] = ()
    left_out: LeftOut = field(default_factory=LeftOut)  # of their folders and shards
    unlabelled: LeftOut = field(default_factory=LeftOut)  # why examples have no label
    rules: PixelRules = field(default_factory=PixelRules)


class _Seen(NamedTuple):
    format: str
    mode: str
    size: tuple[int, int]
    transparent: bool
    orientation: int
    several: bool
    digest: int  # of the RGB pixels, 64 bits
    small: torch.Tensor | None  # uint8 [3, side, side]


class Inspection:
    """What was seen of the examples at ``indices``, in order.

    Args:
        side: of the small pictures of a contact sheet.
    """

    def __init__(self, examples: Examples, indices: np.ndarray, side: int = 96) -> None:
        self.examples, self.indices, self.side = examples, indices, side
        self.sheet = _chosen_for_sheet(examples, indices)
        self.small: dict[int, torch.Tensor] = {}  # by index
        self.unreadable, self.uncaptioned = LeftOut(), LeftOut()
        self.kinds: dict[str, Counter] = {key: Counter() for key in ("format", "mode", "orientation")}
        self.flags: Counter = Counter()
        self.sizes = np.zeros((len(indices), 2), dtype=np.int32)  # (width, height), 0 where it cannot be read
        self.digests = np.zeros(len(indices), dtype=np.uint64)
        self.caption_lengths: list[int] = []

    def look(self, workers: int | None = None) -> Iterator[None]:
        """Decode all of them, with an item after each; files are read in order, and decoded by threads."""
        workers = workers or max(1, min(8, os.cpu_count() or 1))
        pool, ahead = ThreadPoolExecutor(workers), deque[tuple[int, str, Future]]()
        try:
            for place, index in enumerate(map(int, self.indices)):
                try:
                    name, content = self.examples.file(index)
                except CorruptSample as error:
                    self.unreadable.add_error(error.reason, error.name)
                    yield
                    continue
                self._read_caption(index, name)
                ahead.append((place, name, pool.submit(self._see, content, index in self.sheet)))
                if len(ahead) > 4 * workers:  # bounds the files in memory
                    self._note(*ahead.popleft())
                    yield
            while ahead:
                self._note(*ahead.popleft())
                yield
        finally:
            pool.shutdown(cancel_futures=True)

    def _see(self, content: bytes, shown: bool) -> _Seen:
        found = decode(content, self.examples.rules)
        pixels = found.image.tobytes()
        size = repr(found.image.size).encode()
        digest = int.from_bytes(hashlib.blake2b(pixels, digest_size=8, person=size[:16]).digest(), "little")
        small = pil_to_tensor(center_crop(found.image, self.side)) if shown else None
        several = has_more_pictures(content)
        return _Seen(
            found.format,
            found.mode,
            found.size,
            found.transparent,
            found.orientation,
            several,
            digest,
            small,
        )

    def _note(self, place: int, name: str, future: Future) -> None:
        try:
            seen: _Seen = future.result()
        except UnreadableImage as error:
            self.unreadable.add_error(str(error), name)
            return
        for key, counter in self.kinds.items():
            counter[getattr(seen, key)] += 1
        self.flags.update(transparent=seen.transparent, several=seen.several)
        self.sizes[place], self.digests[place] = seen.size, seen.digest
        if seen.small is not None:
            self.small[int(self.indices[place])] = seen.small

    def _read_caption(self, index: int, name: str) -> None:
        try:
            text = self.examples.caption(index)
        except CorruptSample as error:
            self.uncaptioned.add(error.reason, name)
            return
        if text is not None:
            self.caption_lengths.append(len(text))

    def result(self) -> dict[str, Any]:
        """Everything as plain values, for a JSON file."""
        examples, readable = self.examples, self.sizes[:, 0] > 0
        return {
            "images": examples.count,
            "inspected": len(self.indices),
            "readable": int(readable.sum()),
            "unreadable": self.unreadable.to_tree(),
            "left_out": examples.left_out.to_tree(),
            "rules": asdict(examples.rules),
            "formats": _largest_first(self.kinds["format"]),
            "modes": _largest_first(self.kinds["mode"]),
            "orientations": {str(key): n for key, n in sorted(self.kinds["orientation"].items())},
            "transparent_files": self.flags["transparent"],
            "turned_files": sum(n for key, n in self.kinds["orientation"].items() if key != 1),
            "files_of_several_pictures": self.flags["several"],
            "sizes": _of_sizes(self.sizes[readable]),
            "labels": self._labels(),
            "captions": self._captions(),
            "duplicates": self._duplicates(readable),
        }

    def _labels(self) -> dict[str, Any] | None:
        labels, names = self.examples.labels, self.examples.class_names
        if labels is None:
            return None
        counts = np.bincount(np.asarray(labels)[labels != NO_LABEL], minlength=len(names))
        held = counts[counts > 0]
        return {
            "classes": len(names),
            "without_images": int((counts == 0).sum()),
            "fewest_images": int(held.min()) if len(held) else 0,
            "most_images": int(held.max()) if len(held) else 0,
            "images_without_label": int((labels == NO_LABEL).sum()),
            "without_label": self.examples.unlabelled.to_tree(),
            "counts": {name: int(count) for name, count in zip(names, counts, strict=True)},
        }

    def _captions(self) -> dict[str, Any] | None:
        if not self.caption_lengths and not self.uncaptioned:
            return None
        lengths = _spread(np.array(self.caption_lengths)) if self.caption_lengths else None
        return {
            "images": len(self.caption_lengths),
            "empty": self.caption_lengths.count(0),
            "unreadable": self.uncaptioned.to_tree(),
            "characters": lengths,
        }

    def _duplicates(self, readable: np.ndarray) -> dict[str, Any]:
        """Files whose pixels are equal, by name."""
        places = np.flatnonzero(readable)
        order = places[np.argsort(self.digests[places], kind="stable")]
        ends = np.flatnonzero(np.diff(self.digests[order])) + 1
        groups = [self.indices[group] for group in np.split(order, ends) if len(group) > 1]
        groups.sort(key=lambda group: group[0])
        labels = self.examples.labels
        across = 0 if labels is None else sum(len(set(labels[group].tolist())) > 1 for group in groups)
        shown = [[self._name(index) for index in group[:4]] for group in groups[:_SHOWN_GROUPS]]
        return {
            "groups": len(groups),
            "copies": int(sum(len(group) - 1 for group in groups)),
            "groups_of_several_classes": across,
            "first": shown,
        }

    def _name(self, index: int) -> str:
        return printable(self.examples.file(int(index))[0])

    def contact_sheet(self) -> tuple[torch.Tensor, list[str]] | None:
        """Small pictures uint8 [rows * columns, 3, side, side] and a name per row; None if nothing can be read."""
        rows: dict[str, list[torch.Tensor]] = {}
        for index, row in self.sheet.items():
            if index in self.small:
                rows.setdefault(row, []).append(self.small[index])
        if not rows:
            return None
        columns = max(map(len, rows.values()))
        white = torch.full((3, self.side, self.side), 255, dtype=torch.uint8)
        padded = [[*images, *[white] * (columns - len(images))] for images in rows.values()]
        return torch.stack([image for row in padded for image in row]), list(rows)


def _chosen_for_sheet(examples: Examples, indices: np.ndarray) -> dict[int, str]:
    """{index: name of its row}, at even distances."""
    if examples.labels is None:
        return {int(i): str(n // COLUMNS * COLUMNS) for n, i in enumerate(_evenly(indices, SHOWN))}
    labels = np.asarray(examples.labels)[indices]
    chosen = {}
    for label in np.unique(labels[labels != NO_LABEL])[:ROWS]:
        for index in _evenly(indices[labels == label], COLUMNS):
            chosen[int(index)] = printable(str(examples.class_names[label]))
    return chosen


def _evenly(values: np.ndarray, count: int) -> np.ndarray:
    return values if len(values) <= count else values[np.arange(count) * len(values) // count]


def _largest_first(counter: Counter) -> dict[str, int]:
    return dict(counter.most_common())


def _spread(values: np.ndarray) -> dict[str, float]:
    found = np.percentile(values, list(_SHARES.values()), method="nearest")
    return {name: value.item() for name, value in zip(_SHARES, found, strict=True)}


def _of_sizes(sizes: np.ndarray) -> dict[str, Any] | None:
    if not len(sizes):
        return None
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    kinds, counts = np.unique(sizes, axis=0, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:5]
    return {
        "width": _spread(sizes[:, 0]),
        "height": _spread(sizes[:, 1]),
        "shorter_side": _spread(shorter),
        "longer_by_shorter": {key: round(value, 3) for key, value in _spread(longer / shorter).items()},
        "shorter_side_below": {str(side): int((shorter < side).sum()) for side in SIDES},
        "different": len(kinds),
        "most_frequent": [
            [int(w), int(h), int(n)] for (w, h), n in zip(kinds[first], counts[first], strict=True)
        ],
    }


def evenly_spaced(count: int, most: int | None) -> np.ndarray:
    """Indices int64 of at most ``most`` of ``count`` examples, at even distances."""
    return _evenly(np.arange(count), count if most is None else most)
