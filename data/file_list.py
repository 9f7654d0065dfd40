"""Single images on the disk: a file, all below a folder, or those inside tar shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.images import (
    DecodedImage,
    PixelRules,
    TooManyPixels,
    UnreadableImage,
    decode,
    read_head,
)
from data.source import CorruptSample
from storage.image_names import IMAGE_SUFFIXES
from storage.image_tree import find_images
from storage.left_out import LeftOut
from storage.shard_paths import local_shards
from storage.tar_members import read_shards
from storage.tar_samples import TarSample, read_samples

_HEAD = 1 << 16  # bytes that hold the size of nearly all images


@dataclass(frozen=True)
class ImageFile:
    """An image file, or one inside a tar shard."""

    name: str  # relative to what was listed, with "/"; a shard counts as a folder without its ending
    path: Path  # the file or the shard
    sample: TarSample | None = None  # where it lies in the shard; None for a file

    def decode(self, rules: PixelRules | None = None) -> DecodedImage:
        """RGB pixels and what the file holds. Raises CorruptSample if it cannot be read."""
        try:
            return decode(self.content(), rules)
        except UnreadableImage as error:
            raise CorruptSample(self.name, str(error)) from error

    def size(self) -> tuple[int, int]:
        """(width, height) as stored, from the head of the file.

        Raises:
            CorruptSample: it cannot be read.
            ValueError: it has too many pixels to be decoded.
        """
        try:
            try:
                return read_head(self.content(_HEAD)).size
            except TooManyPixels:
                raise
            except UnreadableImage:  # some formats have their sizes at the end
                return read_head(self.content()).size
        except TooManyPixels as error:
            raise ValueError(f"image {self.name} cannot be read: {error}") from error
        except UnreadableImage as error:
            raise CorruptSample(self.name, str(error)) from error

    def caption(self) -> str | None:
        """Stripped text of the `.txt` file or member beside the image; None without one. Raises CorruptSample."""
        if self.sample is not None:
            content = self._read(self.path, *self.sample.caption) if self.sample.caption else None
        else:
            text = self.path.with_suffix(".txt")
            content = self._read(text) if text.is_file() else None
        try:
            # Some editors begin a file with a mark.
            return None if content is None else content.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise CorruptSample(self.name, "its caption is not UTF-8") from error

    def content(self, most: int = -1) -> bytes:
        """The file, or its first bytes. Raises CorruptSample if it cannot be read."""
        if self.sample is None:
            return self._read(self.path, 0, most)
        size = self.sample.size
        return self._read(self.path, self.sample.offset, size if most < 0 else min(most, size))

    def _read(self, path: Path, offset: int = 0, size: int = -1) -> bytes:
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise CorruptSample(self.name, str(error)) from error


class FileList(NamedTuple):
    """Images at a path."""

    files: list[ImageFile]
    left_out: LeftOut
    unlabelled: LeftOut  # samples of shards without a label that can be used; they are among the files


def list_files(path: str | Path) -> list[ImageFile]:
    """Images at a path; says what is left out. For arguments and errors see ``find_files``."""
    found = find_files(path)
    found.left_out.warn(str(path))
    return found.files


def find_files(path: str | Path) -> FileList:
    """Images at a path, and what is left out.

    Args:
        path: an image file; a folder, whose images at any depth are sorted by their paths; or tar shards as a brace
            pattern or a folder of them, whose images keep their order.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there are no images, or a shard is damaged.
    """
    place, left_out, unlabelled = Path(path), LeftOut(), LeftOut()
    if (shards := local_shards(path)) is not None:
        found = []
        for shard, samples in zip(map(Path, shards), read_shards(read_samples, shards), strict=True):
            found += [ImageFile(f"{shard.stem}/{s.name}", shard, s) for s in samples.found]
            left_out.extend(samples.left_out, f"{shard.name}: ")
            for part in (samples.unlabelled, samples.conflicts):
                unlabelled.extend(part, f"{shard.name}: ")
    elif place.is_file():
        return FileList([ImageFile(place.name, place)], left_out, unlabelled)
    elif place.is_dir():
        names, _, left_out = find_images(place)
        found = [ImageFile(name, place / name) for name in names]
    else:
        raise FileNotFoundError(f"{path} is neither an image nor a folder nor tar shards")
    if not found:
        raise ValueError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}){left_out.explain()}")
    return FileList(found, left_out, unlabelled)
