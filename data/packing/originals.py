"""Images as people have them, before they are packed: in folders, in tar files (also nested), in parquet files."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.console import printable, progress
from data.order import FullShuffle, Order, WindowShuffle
from data.packing.archives import list_archive
from data.packing.imagenet_labels import SYNSET
from data.parquet_facts import Columns
from data.parquet_rows import ParquetRows
from data.shard_cache import ShardCache
from data.tar_index import NO_LABEL
from storage.files import user_cache_folder
from storage.image_names import IMAGE_SUFFIXES, is_hidden, suffix
from storage.image_tree import HIDDEN, OTHER_FILE, find_images
from storage.left_out import LeftOut
from storage.open_files import OpenFiles
from storage.tar_members import read_shards

NO_CLASS = "beside the class folders, so of no class"
NO_TRUTH = "not in the list of labels"
_MEMORY = 1 << 30  # bytes of row groups in each process
_MIXED_GROUPS = 8  # row groups of parquet files whose rows are mixed

# The class of an image by its name below the split; None if it has none.
ClassOf = Callable[[str], str | None]


class Original(NamedTuple):
    """An image as it is stored."""

    name: str  # below its split, with "/"
    content: bytes
    caption: str | None


@dataclass
class Originals:
    """The images of one split, and where the bytes of each lie."""

    what: str  # for people
    names: np.ndarray  # bytes [n]; empty ones for rows of parquet files, whose names are read with them
    classes: list[str]  # sorted; synsets, names of folders, or numbers
    labels: np.ndarray  # int64 [n], positions in `classes`, or NO_LABEL
    containers: list[str] = field(default_factory=list)  # tar files
    container: np.ndarray | None = None  # int32 [n], position in `containers`; None for files
    offsets: np.ndarray | None = None  # int64 [n], byte in the container; row of the parquet files
    sizes: np.ndarray | None = None  # int64 [n]
    root: str = ""  # of images that are files
    captions: bool = False  # images may have a .txt file beside them
    rows: ParquetRows | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    _open: OpenFiles = field(default_factory=OpenFiles)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def synsets(self) -> bool:
        """Whether the classes are ImageNet's."""
        return bool(self.classes) and all(map(SYNSET.fullmatch, self.classes))

    def take(self, indices: Sequence[int]) -> Originals:
        """Those images alone, small enough to be sent to another process."""
        picked = np.asarray(indices, dtype=np.int64)
        columns = {
            key: None if (column := getattr(self, key)) is None else column[picked]
            for key in ("names", "labels", "container", "offsets", "sizes")
        }
        return replace(self, **columns, left_out=LeftOut())

    def read(self, index: int) -> Original:
        """One image.

        Raises:
            OSError: its file cannot be read.
            CorruptSample: its row holds no image.
        """
        name = os.fsdecode(self.names[index])
        if self.rows is not None:
            row = self.rows.read(int(self.offsets[index]))
            return Original(row.file_name or f"{int(self.offsets[index]):08d}", row.content, row.caption)
        if self.container is not None:
            place = self.containers[self.container[index]]
            content = self._open.read(place, int(self.offsets[index]), int(self.sizes[index]))
            return Original(name, content, None)
        path = Path(self.root, name)
        text = path.with_suffix(".txt")
        caption = text.read_text("utf-8", "replace").strip() if self.captions and text.is_file() else None
        return Original(name, path.read_bytes(), caption)

    def place(self, index: int) -> str:
        """Where an image lies, for messages."""
        if self.rows is not None:
            return self.rows.name(int(self.offsets[index]))
        place = self.root if self.container is None else self.containers[self.container[index]]
        return printable(f"{place}/{os.fsdecode(self.names[index])}")

    def order(self, seed: int | None) -> Order | range:
        """In which order the images are packed; None keeps that in which they were found."""
        if seed is None:
            return range(len(self))
        if self.rows is None:
            return FullShuffle(len(self), seed=seed)
        # Only whole row groups can be read, so rows are mixed within a few of them.
        return WindowShuffle(self.rows.starts, window=_MIXED_GROUPS, seed=seed)

    def total_bytes(self) -> int:
        """Of all images together; estimated from a thousand of them if they are files."""
        if self.rows is not None:
            return self.rows.bytes
        if self.sizes is not None:
            return int(self.sizes.sum())
        some = range(0, len(self), max(1, len(self) // 1000))
        sizes = [os.path.getsize(os.path.join(os.fsencode(self.root), self.names[i])) for i in some]
        return round(sum(sizes) / len(sizes) * len(self))

    def fingerprint(self) -> str:
        """What changes with the images' names, places, sizes and labels."""
        found = hashlib.sha256(repr(self.classes).encode("utf-8", "surrogateescape"))
        for column in (self.names, self.labels, self.sizes):
            found.update(b"|" if column is None else np.ascontiguousarray(column).tobytes())
        if self.rows is not None:
            found.update(repr([Path(p).name for p in self.rows.paths]).encode() + self.rows.starts.tobytes())
        return found.hexdigest()[:16]


def from_folder(folder: Path, class_of: ClassOf | None = None, *, captions: bool = False) -> Originals:
    """Images below a folder.

    Args:
        class_of: class by the name; by default the subfolder that an image lies in, and none at all without subfolders.

    Raises:
        ValueError: there are no images.
    """
    tree = find_images(folder)
    flat = not any("/" in name for name in tree.files)
    if class_of is None and not flat:
        # A link or a file beside the class folders is left out, as training leaves it out.
        class_of = _first_folder
    names, classes = _with_classes(tree.files, class_of, tree.left_out)
    kind = "images" if flat else "folders of images"
    found = _originals(f"{kind} in {folder}", names, classes, tree.left_out)
    return replace(found, root=str(folder), captions=captions)


def _first_folder(name: str) -> str | None:
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def folder_of(name: str) -> str | None:
    """The innermost folder that a file lies in; None without one."""
    folders = name.split("/")[:-1]
    return folders[-1] if folders else None


def from_tar(files: Sequence[Path], class_of: ClassOf | None = None) -> Originals:
    """Images in tar files, and in tar files inside them, which are called like the class of their images.

    Args:
        class_of: class by the name; by default the innermost folder, and none at all without folders.

    Raises:
        ValueError: a file is no uncompressed tar file or cut short; there are no images.
    """
    left_out, members = LeftOut(), []
    listings = read_shards(partial(list_archive, show=len(files) == 1), files)
    if len(files) > 1:
        listings = progress(listings, "listing archives", total=len(files), unit="file", delay=3.0)
    for number, found in enumerate(listings):
        for written, offset, size in found:
            parts = [part for part in written.split("/") if part not in ("", ".", "..")]
            name, ending = "/".join(parts), suffix(written)
            if any(map(is_hidden, parts)):
                left_out.add(HIDDEN, f"{files[number].name}/{name}")
            elif ending in IMAGE_SUFFIXES:
                members.append((name, number, offset, size))
            elif ending not in (".txt", ".xml", ".csv"):
                left_out.add(OTHER_FILE, f"{files[number].name}/{name}")
    members.sort()
    kept = {}
    for member in members:
        if member[0] in kept:
            raise ValueError(f"{files[member[1]]} holds {printable(member[0])} twice")
        kept[member[0]] = member
    if class_of is None and any("/" in name for name in kept):
        class_of = folder_of
    names, classes = _with_classes(list(kept), class_of, left_out)
    places = np.array([kept[name][1:] for name in names], dtype=np.int64).reshape(-1, 3)
    what = f"{files[0]}" if len(files) == 1 else f"{len(files)} tar files in {files[0].parent}"
    found = _originals(what, names, classes, left_out)
    return replace(
        found,
        containers=[str(file) for file in files],
        container=places[:, 0].astype(np.int32),
        offsets=places[:, 1].copy(),
        sizes=places[:, 2].copy(),
    )


def from_parquet(paths: Sequence[str], columns: Columns) -> Originals:
    """Rows of local parquet files.

    Raises:
        ValueError: as for `data.parquet_rows.ParquetRows`; there are no rows.
    """
    cache = ShardCache(user_cache_folder() / "remote_shards", 200.0)
    rows = ParquetRows(paths, columns, cache=cache, memory=_MEMORY)
    if not len(rows):
        raise ValueError(f"{paths[0]} holds no rows")
    labels = rows.labels
    classes = rows.class_names or [str(number) for number in range(int(labels.max(initial=NO_LABEL)) + 1)]
    if labels.max() >= len(classes):
        raise ValueError(
            f"{rows.name(int(labels.argmax()))} has label {labels.max()} of {len(classes)} classes"
        )
    rows = copy.copy(rows)
    rows.labels = labels[:0]  # not sent along with every part
    what = f"{len(paths)} parquet file{'s' if len(paths) > 1 else ''} in {Path(paths[0]).parent}"
    names = np.full(len(labels), b"")
    return Originals(what, names, classes, labels, offsets=np.arange(len(labels)), rows=rows)


def _with_classes(
    names: Sequence[str], class_of: ClassOf | None, left_out: LeftOut
) -> tuple[list[str], list[str] | None]:
    """Sorted names and the class of each; those without one are left out. No classes without `class_of`."""
    names = sorted(names)
    if class_of is None:
        return names, None
    classes = [class_of(name) for name in names]
    for name, own in zip(names, classes, strict=True):
        if own is None:
            left_out.add(NO_CLASS if class_of in (_first_folder, folder_of) else NO_TRUTH, name)
    pairs = [(name, own) for name, own in zip(names, classes, strict=True) if own is not None]
    return [name for name, _ in pairs], [own for _, own in pairs]


def _originals(what: str, names: list[str], classes: list[str] | None, left_out: LeftOut) -> Originals:
    if not names:
        raise ValueError(f"{what}: no image{left_out.explain()}")
    labels, found = np.full(len(names), NO_LABEL, dtype=np.int64), []
    if classes is not None:
        found, labels = np.unique(np.array(classes, dtype=object), return_inverse=True)
    encoded = np.array([os.fsencode(name) for name in names])
    return Originals(what, encoded, list(found), labels.astype(np.int64), left_out=left_out)


def relabelled(found: Originals, classes: Sequence[str], source: str) -> Originals:
    """The same images, labelled by their places in a longer list of classes.

    Raises:
        ValueError: a class is not in the list, which is that of `source`.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in found.classes if name not in numbers]
    if unknown:
        raise ValueError(
            f"{found.what}: {len(unknown)} of {len(found.classes)} classes are not among those of {source}, such as"
            f" {unknown[0]!r}"
        )
    table = np.array([numbers[name] for name in found.classes], dtype=np.int64)
    return replace(found, classes=list(classes), labels=table[found.labels])
