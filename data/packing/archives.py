"""Where the files of a tar file lie, and of tar files inside it; kept, because a listing reads the whole archive."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from common.console import progress
from data.packing.imagenet_labels import SYNSET
from storage.files import atomic_file, user_cache_folder
from storage.tar_members import TarReader

Member = tuple[str, int, int]  # name, offset, size


def list_archive(path: Path, *, show: bool = False) -> list[Member]:
    """All files; an inner tar file, or one that is called like a synset, counts as a folder.

    `show` shows the progress, if it takes long.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, or not an uncompressed tar file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    status = path.stat()
    name = f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]}.npz"
    place, state = user_cache_folder() / "archives" / name, f"{status.st_size} {status.st_mtime_ns}"
    kept = _read(place, state)
    if kept is not None:
        return kept
    members = list(_members(path, show))
    with suppress(OSError), atomic_file(place) as temporary, open(temporary, "wb") as file:
        names = np.frombuffer(b"\0".join(os.fsencode(own) for own, _, _ in members), dtype=np.uint8)
        places = np.array([member[1:] for member in members], dtype=np.int64).reshape(-1, 2)
        np.savez(file, state=np.array(state), names=names, places=places)
    return members


def _read(place: Path, state: str) -> list[Member] | None:
    try:
        with np.load(place, allow_pickle=False) as arrays:
            if str(arrays["state"]) != state:
                return None
            names = [os.fsdecode(own) for own in arrays["names"].tobytes().split(b"\0")]
            places = arrays["places"].tolist()
            return [(name, *own) for name, own in zip(names, places, strict=True)]
    except Exception:  # whatever is wrong with what was kept, listing anew is right
        return None


def _members(path: Path, show: bool) -> Iterator[Member]:
    prefix = f"{path.stem}/" if SYNSET.fullmatch(path.stem) else ""
    with TarReader(path) as tar:
        outer = list(tar.members())
        if show:
            outer = progress(outer, f"listing {path.name}", unit="file", delay=3.0)
        for name, offset, size in outer:
            if name.lower().endswith(".tar"):
                folder = name[: -len(".tar")]
                inner = tar.members(offset, offset + size)
                yield from ((f"{folder}/{own}", at, length) for own, at, length in inner)
            else:
                yield prefix + name, offset, size
