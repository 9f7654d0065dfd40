"""Single images on the disk: a file, all below a folder, or those inside tar shards."""

import os
from dataclasses import dataclass
from pathlib import Path

from common.images import (
    DecodedImage,
    PixelRules,
    TooManyPixels,
    UnreadableImage,
    decode,
    image_size,
)
from data.source import CorruptSample
from data.tar_index import open_index
from data.webdataset_shards import expand_shards
from storage.image_names import IMAGE_SUFFIXES
from storage.image_tree import find_images
from storage.tar_members import read_shards

_HEAD = 1 << 16  # bytes that hold the size of nearly all images


@dataclass(frozen=True)
class ImageFile:
    """An image file, or one inside a tar shard."""

    name: str  # relative to what was listed, with "/"; a shard counts as a folder without its ending
    path: Path  # the file or the shard
    offset: int | None = None  # bytes of the image in the shard; None for a file
    length: int | None = None

    def decode(self, rules: PixelRules | None = None) -> DecodedImage:
        """RGB pixels and what the file holds. Raises CorruptSample if it cannot be read."""
        try:
            return decode(self._content(), rules)
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
                return image_size(self._content(_HEAD))
            except TooManyPixels:
                raise
            except UnreadableImage:  # some formats have their sizes at the end
                return image_size(self._content())
        except TooManyPixels as error:
            raise ValueError(f"image {self.name} cannot be read: {error}") from error
        except UnreadableImage as error:
            raise CorruptSample(self.name, str(error)) from error

    def caption(self) -> str | None:
        """Stripped text of the `.txt` file beside an image file; None without one. Raises CorruptSample."""
        text = self.path.with_suffix(".txt")
        if self.offset is not None or not text.is_file():
            return None
        try:
            return text.read_text("utf-8-sig").strip()  # some editors begin a file with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptSample(self.name, f"its caption {text.name} is not UTF-8") from error

    def _content(self, most: int | None = None) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset or 0)
                whole = -1 if self.length is None else self.length
                return file.read(whole if most is None else most if whole < 0 else min(most, whole))
        except OSError as error:
            raise CorruptSample(self.name, str(error)) from error


def list_files(path: str | Path) -> list[ImageFile]:
    """Images at a path.

    Args:
        path: an image file; a folder, whose images at any depth are sorted by their paths, hidden ones left out; or tar
            shards as a brace pattern, whose images keep their order.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there are no images, or a shard is damaged.
    """
    if str(path).endswith(".tar"):
        shards = map(Path, expand_shards(str(path)))
        found = [file for files in read_shards(_in_shard, shards) for file in files]
    else:
        place = Path(path)
        if place.is_file():
            return [ImageFile(place.name, place)]
        if not place.is_dir():
            raise FileNotFoundError(f"{path} is neither an image nor a folder nor tar shards")
        tree = find_images(place)
        tree.left_out.warn(str(path))
        found = [ImageFile(name, place / name) for name in tree.files]
        if not found:
            raise ValueError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}){tree.left_out.explain()}")
    if not found:
        raise ValueError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _in_shard(shard: Path) -> list[ImageFile]:
    index = open_index(shard, keep=False)  # a program that only looks leaves nothing behind
    places = zip(index.names, index.offsets.tolist(), index.sizes.tolist(), strict=True)
    return [ImageFile(f"{shard.stem}/{os.fsdecode(name)}", shard, *place) for name, *place in places]
