"""Which files below a folder are images: the one answer for training, tokenizing, reconstruction and evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.console import printable
from common.image_formats import missing_reader
from storage.image_names import IMAGE_SUFFIXES, is_hidden, suffix
from storage.left_out import LeftOut

HIDDEN = "hidden, or made by an operating system"
OTHER_FILE = "not an image by its suffix"
VIDEO = "a video"
NOT_THERE = "a file that is not there"
NO_FILE = "a link to a file that is not there"
SPECIAL = "neither a file nor a folder"
CIRCLE = "a link to a folder that it lies in"
# What people keep beside images; passed over without a word.
_COMPANIONS = frozenset(
    [
        ".txt",
        ".caption",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".md",
        ".xml",
        ".yaml",
        ".yml",
        ".html",
        ".cls",
        ".log",
    ]
    + [
        ".index",
        ".npz",
        ".npy",
        ".pt",
        ".pth",
        ".bin",
        ".pkl",
        ".safetensors",
        ".parquet",
        ".db",
        ".ini",
        ".py",
        ".sh",
    ]
)
_IMAGES = frozenset(IMAGE_SUFFIXES)
# Phones put one beside every Live Photo.
_VIDEOS = frozenset(
    [".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".3gp", ".mts", ".wmv", ".mpg", ".mpeg"]
)


class ImageTree(NamedTuple):
    """What a folder holds; paths are relative to it, with ``/``."""

    files: list[str]  # images at any depth, sorted as text
    folders: list[str]  # right below it, sorted as text, also those without an image
    left_out: LeftOut


def find_images(folder: str | Path) -> ImageTree:
    """Images at any depth below a folder.

    An image is a file with one of IMAGE_SUFFIXES in any case. Hidden files and folders are left out, links are followed
    unless they lead round in a circle. Names need not be UTF-8. Files of text and data beside images are not mentioned.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: a folder below it cannot be listed; the message names it.
    """
    place = Path(folder)
    if not place.is_dir():
        what = "is not a folder" if place.exists() else "does not exist"
        raise FileNotFoundError(f"image folder {folder} {what}")
    tree = ImageTree([], [], LeftOut())
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [
        ("", frozenset())
    ]  # and the folders that it lies in
    while waiting:
        within, above = waiting.pop()
        entries, own = _listed(place, within)
        if own in above:
            tree.left_out.add(CIRCLE, within)
            continue
        below = []
        for entry in entries:
            name = f"{within}/{entry.name}" if within else entry.name
            if _is(entry.is_dir):
                if is_hidden(entry.name):
                    tree.left_out.add(HIDDEN, f"{name}/")
                else:
                    below.append((name, above | {own}))
            elif reason := _reason(entry):
                tree.left_out.add(reason, name)
            elif suffix(entry.name) in _IMAGES:
                tree.files.append(name)
        if not within:
            tree.folders.extend(name for name, _ in below)
        waiting += reversed(below)
    tree.files.sort()
    return tree


def _listed(place: Path, within: str) -> tuple[list[os.DirEntry], tuple[int, int]]:
    """Sorted entries of a folder, and what identifies it, however it was reached."""
    try:
        status = os.stat(place / within)
        with os.scandir(place / within) as entries:
            return sorted(entries, key=lambda entry: entry.name), (status.st_dev, status.st_ino)
    except OSError as error:
        raise OSError(f"folder {printable(str(place / within))} cannot be read: {error.strerror}") from error


def why_no_image(path: Path) -> str:
    """Why a file that somebody names as an image is none, by the rules of ``find_images``; empty for images."""
    if suffix(path.name) not in _IMAGES:
        return VIDEO if suffix(path.name) in _VIDEOS else OTHER_FILE
    if _is(path.is_file):
        return missing_reader(suffix(path.name))
    return SPECIAL if _is(path.exists) else NOT_THERE


def _reason(entry: os.DirEntry) -> str:
    """Why a file is left out; empty for images, and for what nobody takes for one."""
    ending = suffix(entry.name)
    if is_hidden(entry.name):
        return HIDDEN if ending in _IMAGES else ""
    if ending in _COMPANIONS:
        return ""
    if ending not in _IMAGES:
        return VIDEO if ending in _VIDEOS else OTHER_FILE
    if _is(entry.is_file):  # a pipe would be waited for without an end
        return missing_reader(ending)
    return NO_FILE if entry.is_symlink() else SPECIAL


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()  # follows links
    except OSError:  # a link to itself, or to a place that may not be entered
        return False
