"""The tar shards of one data set, local or remote, by their numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.shard_cache import ShardCache
from data.tar_index import ShardIndex, make_index, open_index, read_index, read_published, write_index
from storage.open_files import OpenFiles
from storage.remote_files import Version, is_remote, read_from, require_readable, version_of


class Shards:
    """Their samples' bytes, indices and names.

    Args:
        paths: local paths and URLs.
        cache: where remote shards are kept.
        label_key, keep_index: as for ``data.tar_index.open_index``.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        cache: ShardCache,
        label_key: str | None = None,
        keep_index: bool = True,
    ) -> None:
        self.paths, self.cache = list(paths), cache
        self.any_remote = any(map(is_remote, self.paths))
        self.home = (
            cache.folder if self.any_remote else Path(self.paths[0]).parent
        )  # of what is kept about them all
        self.label_key, self._keep_index = label_key, keep_index
        self._files = OpenFiles()
        self._last: tuple[int, ShardIndex] | None = None  # whose names were asked for

    def __getstate__(self) -> dict:
        return vars(self) | {"_last": None}

    def stamp(self, path: str) -> str:
        """What changes with the content of a local shard; a remote one is compared when it is fetched.

        Raises:
            FileNotFoundError: a local shard does not exist.
            ValueError: the package for a remote one is missing.
        """
        if is_remote(path):
            require_readable(path)
            return path
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"shard {path} does not exist; scripts/prepare_data.py makes shards of what you have"
            )
        status = os.stat(path)
        return f"{path} {status.st_size} {status.st_mtime_ns}"

    def index(self, path: str) -> ShardIndex:
        """Index of a shard, kept or made; a remote one is fetched for that, unless its index lies beside it."""
        if not is_remote(path):
            return open_index(Path(path), label_key=self.label_key, keep=self._keep_index)
        version, place = self.cache.known_version(path), self.cache.place(path)
        kept = place.with_name(f"{place.name}.index")
        if version is not None:
            index = read_index(kept, [version.size, version.etag], self.label_key)
            if index is not None:
                return index
        published = self._published(path)
        if published is not None:
            index, version = published
            self.cache.remember(path, version)
            write_index(kept, index, [version.size, version.etag], self.label_key)
            return index
        file = self.cache.open(path)  # keeps the shard in the cache while it is read
        try:
            index, version = make_index(place, label_key=self.label_key), self.cache.known_version(path)
            write_index(kept, index, [version.size, version.etag], self.label_key)
            return index
        finally:
            os.close(file)

    def _published(self, url: str) -> tuple[ShardIndex, Version] | None:
        """Index beside a remote shard, made before the shards went there, and the shard's version."""
        if "?" in url:  # a signature is for one address
            return None
        try:
            place = f"{url}.index"
            content = b"".join(read_from(place, 0, version_of(place)))
            version = version_of(url)
        except Exception:  # it is not there; the network's troubles are named when the shard is fetched
            return None
        index = read_published(content, version.size, self.label_key)
        return None if index is None else (index, version)

    def size(self, path: str) -> int:
        """Bytes of a shard that was indexed."""
        return self.cache.known_version(path).size if is_remote(path) else os.path.getsize(path)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of a shard.

        Raises:
            OSError: a local shard cannot be read.
            RemoteError: a remote one cannot be fetched.
        """
        path = self.paths[number]
        return (self.cache if is_remote(path) else self._files).read(path, offset, size)

    def name(self, number: int, offset: int) -> str:
        """Shard and member of the image at an offset, from the shard's own index: names are not held in memory."""
        try:
            if self._last is None or self._last[0] != number:
                self._last = (number, self.index(self.paths[number]))
            index = self._last[1]
            member = os.fsdecode(index.names[int(np.flatnonzero(index.offsets == offset)[0])])
        except (OSError, ValueError, IndexError):  # the message is about something worse
            member = f"the image at byte {offset}"
        return f"{self.paths[number]}: {member}"

    def expect(self, *groups: Sequence[int]) -> None:
        """Fetch remote shards in the background, those of the first group first."""
        remote = [[self.paths[n] for n in group if is_remote(self.paths[n])] for group in groups]
        if any(remote):
            self.cache.expect(*remote)
