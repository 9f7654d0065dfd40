"""Tar shards as people name them: a brace pattern, a list of patterns, or a folder of them."""

from __future__ import annotations

import os
from pathlib import Path

from common import braces
from storage.image_names import is_hidden
from storage.image_tree import find_images

# Compressed ones are no shards, but must not be taken for something else: reading them says what they are.
_ENDINGS = (
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.zst",
    ".tzst",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
    ".tar.lz4",
)


def expand_braces(path: str | list[str]) -> list[str]:
    """Paths and URLs that brace patterns name; ValueError if braces do not match, or name none or millions."""
    patterns = [path] if isinstance(path, str) else path
    try:
        named = [file for pattern in patterns for file in braces.expand_braces(pattern)]
    except ValueError as error:
        raise ValueError(f"path={error}") from error
    if not named:
        raise ValueError("path=[] names no shard")
    return named


def expand_shards(path: str | list[str]) -> list[str]:
    """As `expand_braces`, with the shards in a folder in place of the folder; ValueError if it holds none."""
    shards = []
    for file in expand_braces(path):
        inside = _shards_in(file) if os.path.isdir(file) else [file]
        if not inside:
            raise ValueError(f"folder {file} holds no tar shard")
        shards += inside
    return shards


def local_shards(path: str | Path) -> list[str] | None:
    """The shards that a path names, by a pattern or as a folder of shards; None if it names something else.

    Raises:
        ValueError: braces do not match, or a folder holds images beside shards.
    """
    text = str(path)
    if not os.path.isdir(text):
        return expand_shards(text) if text.lower().endswith(_ENDINGS) else None
    shards = _shards_in(text)
    if shards and find_images(text).files:
        raise ValueError(
            f"{path} holds tar shards and images; name the shards by a pattern, or a folder of images"
        )
    return shards or None


def _shards_in(folder: str) -> list[str]:
    names = sorted(
        name for name in os.listdir(folder) if name.lower().endswith(_ENDINGS) and not is_hidden(name)
    )
    return [os.path.join(folder, name) for name in names]
