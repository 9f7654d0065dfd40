"""Which images a folder, an archive or a pattern of parquet files holds, and how they are labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.hub_files import split_of
from data.packing.imagenet_labels import FILES, SYNSET, Annotations, find_annotations, read_annotations
from data.packing.originals import (
    ClassOf,
    Originals,
    folder_of,
    from_folder,
    from_parquet,
    from_tar,
    relabelled,
)
from data.parquet_facts import Columns
from data.parquet_images import parquet_paths

SPLITS = ("train", "validation")
_NAMES = {
    "train": ("train", "training", "ILSVRC2012_img_train"),
    "validation": ("validation", "val", "valid", "ILSVRC2012_img_val"),
}
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # below what Kaggle's archive unpacks to
LIST = ", ".join(FILES)


@dataclass
class Found:
    """The images of every split, all labelled by the same classes."""

    splits: dict[str, Originals] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of classes, in words
    annotations: list[str] = field(default_factory=list)  # files that were read


def find_originals(
    root: str,
    *,
    train: str | None = None,
    validation: str | None = None,
    annotations: str | None = None,
    columns: Columns | None = None,
) -> Found:
    """Look at a folder, an archive, or parquet files.

    Args:
        root: a folder with both splits; or one with images, an archive, or a pattern, whose images are for training.
        train, validation: where the images of a split are, instead of looking for them below `root`.
        annotations: file or folder with labels and classes, beside those found below `root`.
        columns: of parquet files.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a split is there twice, or images cannot be labelled.
    """
    places = {"train": train, "validation": validation}
    given = {split: place for split, place in places.items() if place is not None}
    folder = Path(root)
    found_places = given if given else _splits_below(folder) if folder.is_dir() else {"train": root}
    if not found_places:
        found_places = {"train": root}
    looked_at = [folder, folder.parent] if "CLS-LOC" in str(folder) else [folder]
    looked_at = [p if p.is_dir() else p.parent for p in looked_at] + (
        [Path(annotations)] if annotations else []
    )
    if annotations and not Path(annotations).exists():
        raise FileNotFoundError(f"annotations={annotations} does not exist")
    facts = read_annotations(find_annotations([place for place in looked_at if place.exists()]))
    found = Found(names=facts.names, annotations=facts.files)
    for split, place in found_places.items():
        found.splits[split] = _read_split(split, place, facts, columns or Columns())
    _same_classes(found, facts)
    return found


def _splits_below(folder: Path) -> dict[str, str]:
    """Place of every split in a folder; ValueError if one is there twice."""
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        archive = folder / _ARCHIVES[split]
        found[split] += [str(archive)] if archive.is_file() else []
        for base in (folder, *(folder / below for below in _KAGGLE)):
            places = [base / name for name in _NAMES[split] if (base / name).is_dir()]
            found[split] += list(map(str, places))
    for base in (folder, folder / "data"):
        files = sorted(base.glob("*.parquet"))
        for split in SPLITS:
            own = {split_of(file.name)[1] for file in files} & set(_NAMES[split])
            found[split] += [str(base / f"{name}-*.parquet") for name in sorted(own)]
    for split, places in found.items():
        if len(places) > 1:
            raise ValueError(
                f"{folder} holds the {split} images twice: {', '.join(places)}; choose one: {split}=..."
            )
    return {split: places[0] for split, places in found.items() if places}


def _read_split(split: str, place: str, facts: Annotations, columns: Columns) -> Originals:
    path = Path(place)
    if place.endswith(".parquet") or (path.is_dir() and any(path.glob("*.parquet"))):
        return from_parquet(parquet_paths(place), columns)
    if path.is_file() and not place.endswith(".tar"):
        raise ValueError(f"{place}: expected a folder, an uncompressed .tar, or .parquet files")
    if not path.exists():
        raise FileNotFoundError(f"{place} does not exist")
    if path.is_dir():
        inner = sorted(path.glob("n*.tar"))
        return from_tar(inner) if inner else _read_folder(split, path, facts)
    return from_tar([path], None if split == "train" else _labelling(facts))


def _read_folder(split: str, folder: Path, facts: Annotations) -> Originals:
    labelled = bool(facts.by_image or facts.by_number)
    # Tiny ImageNet keeps the validation images in one folder, too: which is no class.
    folders = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if split == "validation" and labelled and not any(map(SYNSET.fullmatch, folders)):
        return from_folder(folder, facts.synset_of)
    found = from_folder(folder, captions=not labelled)
    if not found.classes and split == "validation" and facts.names:
        raise ValueError(f"{found.what} are not in class folders, and none of {LIST} says their classes")
    return found


def _labelling(facts: Annotations) -> ClassOf:
    """Class of a validation image in an archive: of its name, or its folder if it lies in one that is a synset."""

    def class_of(name: str) -> str | None:
        folder = folder_of(name)
        return folder if folder and SYNSET.fullmatch(folder) else facts.synset_of(name)

    if not (facts.by_image or facts.by_number):
        raise ValueError(
            f"the validation images have no labels; put one of {LIST} beside them, or set annotations=..."
        )
    return class_of


def _same_classes(found: Found, facts: Annotations) -> None:
    """Label the splits by one list of classes: of the annotations, else of the training images."""
    splits = found.splits
    bare = [own.what for own in splits.values() if not own.classes]
    if bare and len(bare) < len(splits):
        raise ValueError(
            f"{bare[0]} have no labels, the other images have; put one of {LIST} there, or set annotations=..."
        )
    if any(own.rows is not None for own in splits.values()):
        lists = [own.classes for own in splits.values()]
        longest = max(lists, key=len)
        if any(own != longest[: len(own)] for own in lists):
            raise ValueError("the parquet files of the splits have other class names")
        for own in splits.values():
            own.classes = longest
        return
    classes, source = facts.synsets(), ", ".join(facts.files)
    uses = [own for own in splits.values() if own.classes]
    if not uses or (classes and not all(map(SYNSET.fullmatch, uses[0].classes))):
        classes = []
    if not classes and uses:
        first = splits.get("train", uses[0])
        classes, source = first.classes, first.what
    for split, own in splits.items():
        if own.classes and list(own.classes) != list(classes):
            splits[split] = relabelled(own, classes, source)


def examples(originals: Originals, count: int) -> Sequence[int]:
    """A few images, evenly chosen; neighbours in parquet files, where a row costs as much as its group."""
    if originals.rows is not None:
        return range(min(count, len(originals)))
    return np.unique(np.linspace(0, len(originals) - 1, count).astype(int)).tolist()
