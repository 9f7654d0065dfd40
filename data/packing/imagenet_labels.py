"""ImageNet's classes and the labels of its validation images, from the files they are published in.

A label is the position of the class's synset (`n01440764`) among the sorted synsets: what all published models and
results use. The ids of the devkit (ILSVRC2012_ID, 1 to 1000) count in another order, so they go through the synsets.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.console import one_line
from storage.mat_file import read_table

SYNSET = re.compile(r"n\d{8}")
# In a file name: n01440764_10026.JPEG, ILSVRC2012_val_00000293_n01796340.JPEG; n02105855_2933_n02105855.JPEG.
_IN_NAME = re.compile(rf"(?:^|_)({SYNSET.pattern})(?:_|$)")
TRAIN_IMAGES, VALIDATION_IMAGES = 1_281_167, 50_000
FEWEST_PER_CLASS, MOST_PER_CLASS, VALIDATION_PER_CLASS = 732, 1300, 50

_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_MAPPINGS = ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt", "imagenet_lsvrc_2015_synsets.txt")
_SOLUTIONS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "val_annotations.txt")
_LARGEST = 1 << 26  # bytes of a file in the devkit
_DEVKITS = ("ILSVRC2012_devkit_t12.tar.gz",)
FILES = (*_MAPPINGS, *_SOLUTIONS, *_DEVKITS, "meta.mat", _GROUND_TRUTH)


@dataclass
class Annotations:
    """What the files say; empty where they say nothing."""

    names: dict[str, str] = field(default_factory=dict)  # of every synset; "" if a list gives none
    by_image: dict[str, str] = field(default_factory=dict)  # synset by the stem of a validation image
    by_number: list[str] = field(default_factory=list)  # synset of validation image 1, 2, ...
    files: list[str] = field(default_factory=list)  # that were read

    def synset_of(self, name: str) -> str | None:
        """Synset of a validation image by its file name; None if these files do not hold it."""
        stem = name.rpartition("/")[2].partition(".")[0]
        if stem in self.by_image:
            return self.by_image[stem]
        number = re.search(r"(\d+)$", stem)
        if self.by_number and number and 1 <= int(number.group(1)) <= len(self.by_number):
            return self.by_number[int(number.group(1)) - 1]
        return None

    def synsets(self) -> list[str]:
        """All that are named, sorted."""
        return sorted({*self.names, *self.by_image.values(), *self.by_number})


def find_annotations(places: Sequence[Path]) -> list[Path]:
    """Files of the known names in folders, right below them, and in an unpacked devkit."""
    found: list[Path] = []
    for place in places:
        if place.is_file():
            found.append(place)
            continue
        folders = [place, *sorted(f for f in place.iterdir() if f.is_dir() and not SYNSET.fullmatch(f.name))]
        folders += [folder / "data" for folder in folders if "devkit" in folder.name]
        found += [folder / name for folder in folders for name in FILES if (folder / name).is_file()]
    return list(dict.fromkeys(found))


def read_annotations(files: Sequence[Path]) -> Annotations:
    """What all files say together.

    Raises:
        ValueError: a file is not of a known kind or damaged, the ground truth lacks meta.mat, or two
            files give an image different classes.
    """
    found, ids = Annotations(), {}
    truth: tuple[str, str] | None = None  # name and text
    for path in files:
        found.files.append(path.name)
        contents = (
            _devkit(path)
            if path.name.endswith((".tar.gz", ".tgz", ".tar"))
            else {path.name: path.read_bytes()}
        )
        for name, content in contents.items():
            if name.endswith(".mat"):
                ids |= _meta(content, f"{path}", found)
            elif name == _GROUND_TRUTH:
                truth = (str(path), _text(content, path))
            else:
                _read_text(name, _text(content, path), path, found)
    if truth is not None and ids:
        found.by_number = [_synset_of_id(line, ids, truth[0]) for line in truth[1].split()]
    elif truth is not None and not (found.by_image or found.by_number):
        raise ValueError(
            f"{truth[0]} holds ids of the devkit; meta.mat, which says what they mean, must lie beside it"
        )
    return found


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text at byte {error.start}") from error


def _read_text(name: str, text: str, path: Path, found: Annotations) -> None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = [line.split()[0] for line in lines]
    if name.endswith(".csv"):  # ImageId,PredictionString: a synset and boxes, again and again
        try:
            rows = list(csv.reader(io.StringIO(text)))
        except csv.Error as error:
            raise ValueError(f"{path} cannot be read: {one_line(error)}") from error
        solution = {row[0]: row[1].split()[0] for row in rows[1:] if len(row) > 1 and row[1].split()}
        _add_images(solution, path, found)
    elif lines and all("\t" in line for line in lines):  # Tiny ImageNet: image, synset, box
        parts = [line.split("\t") for line in lines]
        _add_images({row[0].partition(".")[0]: row[1] for row in parts}, path, found)
    elif lines and all(map(SYNSET.fullmatch, first)):
        if len(set(first)) < len(first):  # one line per validation image
            found.by_number = first
        else:
            found.names |= {line.split()[0]: line.partition(" ")[2].strip() for line in lines}
    else:
        raise ValueError(
            f"{path} is not understood; expected one of {', '.join(FILES)}, or a list of synsets"
        )


def _add_images(solution: Mapping[str, str], path: Path, found: Annotations) -> None:
    wrong = next((image for image, synset in solution.items() if not SYNSET.fullmatch(synset)), None)
    if wrong is not None or not solution:
        raise ValueError(f"{path}: expected an image and its synset on every line, found {wrong!r}")
    other = next((i for i, s in solution.items() if found.by_image.get(i, s) != s), None)
    if other is not None:
        raise ValueError(f"{path}: {other} has another class than in {', '.join(found.files[:-1])}")
    found.by_image |= solution


def _devkit(path: Path) -> dict[str, bytes]:
    """meta.mat and the ground truth inside an archive; nothing is unpacked."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in ("meta.mat", _GROUND_TRUTH):
                    if member.size > _LARGEST:
                        raise ValueError(f"{path}: {name} has {member.size} bytes, which is not the devkit's")
                    found[name] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or no archive: {one_line(error)}") from error
    if "meta.mat" not in found:
        raise ValueError(f"{path} is not the devkit: it holds no meta.mat")
    return found


def _meta(content: bytes, path: str, found: Annotations) -> dict[int, str]:
    """{id: synset} of the classes, whose names are added to what was found."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    try:
        rows = read_table(content, "synsets", fields)
    except ValueError as error:
        raise ValueError(f"{path}: meta.mat cannot be read: {error}") from error
    rows = [
        row for row in rows if len(row) == len(fields) and row["num_children"] == 0
    ]  # others are groups of classes
    if any(
        not isinstance(row["ILSVRC2012_ID"], float) or not row["ILSVRC2012_ID"].is_integer() for row in rows
    ):
        raise ValueError(f"{path}: meta.mat cannot be read: an ILSVRC2012_ID is no whole number")
    found.names |= {str(row["WNID"]): str(row["words"]) for row in rows}
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}


def _synset_of_id(text: str, ids: Mapping[int, str], path: str) -> str:
    if not text.isdecimal() or int(text) not in ids:
        raise ValueError(f"{path}: {text!r} is no id of a class in meta.mat")
    return ids[int(text)]


def synset_in(name: str) -> str | None:
    """The synset that a file name holds, None without one."""
    found = _IN_NAME.search(name.rpartition("/")[2].partition(".")[0])
    return found.group(1) if found else None


def count_warnings(split: str, per_class: Mapping[str, int]) -> list[str]:
    """How the numbers of images per class differ from those of ImageNet's 1000 classes; empty if they do not."""
    if len(per_class) != 1000:
        return [f"{len(per_class)} of ImageNet's 1000 classes"]
    total, known = sum(per_class.values()), TRAIN_IMAGES if split == "train" else VALIDATION_IMAGES
    least = most = VALIDATION_PER_CLASS
    if split == "train":
        least, most = FEWEST_PER_CLASS, MOST_PER_CLASS
    found = [f"{total:,} images, but ImageNet has {known:,} ({total - known:+,})"] if total != known else []
    odd = [f"{name} ({count})" for name, count in per_class.items() if not least <= count <= most]
    if odd:
        expected = f"{least} to {most}" if least < most else f"{least}"
        more = ", ..." if len(odd) > 5 else ""
        found.append(f"{len(odd)} classes do not have {expected} images: {', '.join(odd[:5])}{more}")
    return found
