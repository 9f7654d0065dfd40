"""Images inside larger files, `.npz`/`.npy` arrays and tar shards, and the function that opens any path.

Arrays follow the layout of the ADM evaluator (arXiv:2105.05233): `arr_0` uint8 [N, H, W, 3], `arr_1` integer labels.
"""

import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from braceexpand import UnbalancedBracesError, braceexpand
from PIL import Image

from common import distributed
from common.console import progress
from common.images import PixelRules, pil_to_tensor
from evaluator.image_stream import EncodedImages, FolderImages, ImageStream, Transform, digest_lines
from storage.arrays import DAMAGE, ArrayFile, array_bytes, check_member, damage_named, read_header, stored_at
from storage.image_names import IMAGE_SUFFIXES
from storage.open_files import OpenFiles
from storage.tar_members import TarReader, read_shards

PIXELS, LABELS = "arr_0", ("arr_1", "labels")
_BLOCK = 1 << 24  # bytes that are read at a time to get forward in a compressed member


class ArrayImages(ImageStream):
    """`arr_0` of an `.npz`, or a whole `.npy`, read piece by piece.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, or holds something else than uint8 [N, H, W, 3] in C order.
    """

    def __init__(self, path: str | Path, *, transform: Transform | None = None) -> None:
        self.path, self.source, self._transform = Path(path), str(path), transform
        if not self.path.is_file():
            raise FileNotFoundError(f"array file {path} does not exist")
        with damage_named(f"{path} cannot be read as images"):
            with _Member(self.path, PIXELS) as file:
                shape, fortran, dtype = read_header(file)
                self._start = file.position
                held = file.size - file.position
            self._checks = self._read_directory()
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran or 0 in shape:
            order = "Fortran" if fortran else "C"
            raise ValueError(
                f"{path} holds {dtype} {list(shape)} in {order} order, expected uint8 [N, H, W, 3] in C order"
            )
        if array_bytes(shape, dtype) > held:
            missing = held // array_bytes(shape[1:], dtype)
            raise ValueError(f"{path} is cut short: image {missing} of {shape[0]} is missing")
        self.count, self._shape = shape[0], tuple(shape[1:])
        self.size = self._shape[:2]
        if transform is not None:
            self.size = None  # the first image that went through it tells
            next(iter(self.images(range(1))))

    def _read_directory(self) -> list[str]:
        if self.path.suffix == ".npy":
            return [f"{self.path.name} {self.path.stat().st_size}"]
        with zipfile.ZipFile(self.path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        self.has_statistics = "mu" in members
        with ArrayFile(self.path) as arrays:
            key = next((k for k in LABELS if k in members), None)
            labels = arrays.read(key) if key else None
        if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu":
            self.labels = labels.astype(np.int64)
        return [f"{name} {info.CRC:08x} {info.file_size}" for name, info in sorted(members.items())]

    def images(self, positions: range) -> Iterator[torch.Tensor]:
        size = int(np.prod(self._shape))
        with _Member(self.path, PIXELS) as file:
            for position in positions:
                file.skip_to(self._start + position * size)
                content = file.read(size)
                if len(content) < size:
                    raise ValueError(
                        f"{self.source} is cut short: image {position} of {self.count} is missing"
                    )
                pixels = np.frombuffer(content, np.uint8).reshape(self._shape)
                yield self._finish(pixels, position)

    def _finish(self, pixels: np.ndarray, position: int) -> torch.Tensor:
        if self._transform is None:
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        image = pil_to_tensor(self._transform(Image.fromarray(pixels)))
        if self.size is None:
            self.size = tuple(image.shape[1:])
        return self.checked(image, f"{self.source}: image {position}")

    def digest(self) -> str:
        return digest_lines(self._checks)  # names, checksums and sizes of the members


class _Member:
    """The bytes of one array; in an uncompressed zip any place is reached directly."""

    def __init__(self, path: Path, name: str) -> None:
        self.position = self._base = 0
        self._seekable = True
        if path.suffix == ".npy":
            self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115
            self.size = path.stat().st_size
            return
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            info = members.get(f"{name}.npy")
            if info is None:
                held = ", ".join(sorted(n.removesuffix(".npy") for n in members)) or "nothing"
                raise ValueError(f"it holds no array {name}, only {held}")
            check_member(info)
            self.size = info.file_size
            if info.compress_type != zipfile.ZIP_STORED:
                # The file below stays open until the member is closed.
                self._file, self._seekable = archive.open(info), False
                return
        self._base = stored_at(path, info)
        self._file = open(path, "rb")  # noqa: SIM115
        self._file.seek(self._base)

    def __enter__(self) -> "_Member":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        parts, left = [], size  # a member of a zip may give less than was asked for
        while left and (part := self._file.read(left)):
            parts.append(part)
            left -= len(part)
        self.position += size - left
        return b"".join(parts)

    def skip_to(self, position: int) -> None:
        if self._seekable:
            self._file.seek(self._base + position)
            self.position = position
        # In a compressed member the only way is forward; positions increase.
        while self.position < position and self.read(min(position - self.position, _BLOCK)):
            pass


def member_shape(path: str | Path, name: str) -> tuple[int, ...] | None:
    """Shape of one array of an `.npz`, without reading it; None if it is not there or cannot be read."""
    try:
        with _Member(Path(path), name) as file:
            return read_header(file)[0]
    except DAMAGE:
        return None


class TarImages(EncodedImages):
    """Image members of uncompressed tar shards, in the order of the shards and of their members.

    Every process makes it; one reads the headers for all.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard is damaged, cut short or compressed, or there is no image.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        source: str,
        transform: Transform | None = None,
        rules: PixelRules | None = None,
    ) -> None:
        self._shards = [str(shard) for shard in shards]
        self._places, names, labels = distributed.on_main(lambda: _list_shards(self._shards))
        if labels and None not in labels:
            self.labels = np.array(labels, dtype=np.int64)
        self._files = OpenFiles()
        super().__init__(source=source, names=names, transform=transform, rules=rules)

    def content(self, position: int) -> bytes:
        shard, offset, size = self._places[position]
        return self._files.read(self._shards[shard], offset, size)

    def digest(self) -> str:
        pairs = zip(self.names[: self.count], self._places, strict=False)
        return digest_lines(f"{name}\t{size}" for name, (_, _, size) in pairs)


def _list_shards(shards: Sequence[str]) -> tuple[list[tuple[int, int, int]], list[str], list[int | None]]:
    """(number of the shard, offset, size), name and label of all images."""
    places, names, labels = [], [], []
    for shard in shards:  # all are looked for before the first is read
        if not os.path.isfile(shard):
            raise FileNotFoundError(f"shard {shard} does not exist")
    listed = progress(
        read_shards(_members, shards), "listing shards", total=len(shards), unit="shard", delay=3.0
    )
    for number, members in enumerate(listed):
        for name, offset, size, label in members:
            places.append((number, offset, size))
            names.append(f"{os.path.basename(shards[number])}/{name}")
            labels.append(label)
    return places, names, labels


def _members(shard: str) -> list[tuple[str, int, int, int | None]]:
    """(name, offset, size, label from the `.cls` member of the same name) of the images of a shard."""
    found, labels = [], {}
    with TarReader(shard) as tar:
        for name, offset, size in tar.members():
            base = os.path.basename(name)
            if base.startswith("."):
                continue
            stem, _, ending = base.partition(".")
            key = os.path.join(os.path.dirname(name), stem)
            if base.lower().endswith(IMAGE_SUFFIXES):
                found.append((key, name, offset, size))
            elif ending == "cls":
                text = tar.read(offset, size).strip()
                labels[key] = int(text) if text.isdigit() else None
    return [(name, offset, size, labels.get(key)) for key, name, offset, size in found]


def open_images(
    path: str | Path, *, transform: Transform | None = None, rules: PixelRules | None = None
) -> ImageStream:
    """Images at a path; says what is left out.

    Args:
        path: a folder of images (at any depth) or of tar shards; a folder of `sample_imagenet.py`; an `.npz` or
            `.npy` file; tar shards, as a brace pattern such as `val-{000..049}.tar`.
        transform: applied to every image, e.g. a crop.
        rules: how files become RGB; `PixelRules()` if None.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: the path holds no images, or unfinished ones.
    """
    images = _open(path, transform, rules)
    images.left_out.warn(str(path))
    return images


def _open(path: str | Path, transform: Transform | None, rules: PixelRules | None) -> ImageStream:
    text = str(path)
    if text.endswith(".tar"):
        return TarImages(expand_shards(text), source=text, transform=transform, rules=rules)
    place = Path(text)
    if place.is_dir():
        return _open_folder(place, transform, rules)
    if not place.exists():
        raise FileNotFoundError(f"images {path} do not exist")
    if place.suffix in (".npz", ".npy"):
        return ArrayImages(place, transform=transform)
    raise ValueError(f"images {path} are of no known kind; expected a folder, .npz, .npy or .tar")


def expand_shards(pattern: str) -> list[Path]:
    """Shards that a brace pattern names. Raises ValueError if its braces do not match."""
    try:
        return [Path(shard) for shard in braceexpand(pattern)]
    except UnbalancedBracesError as error:
        raise ValueError(f"images {pattern}: braces do not match") from error


def _open_folder(folder: Path, transform: Transform | None, rules: PixelRules | None) -> ImageStream:
    if (folder / "unfinished.part").exists():
        raise ValueError(
            f"{folder} holds samples that are still being made; run sample_imagenet.py to the end"
        )
    if (folder / "samples.json").is_file():  # samples.png beside them is a contact sheet
        if (folder / "samples.npz").is_file():
            return ArrayImages(folder / "samples.npz", transform=transform)
        return FolderImages(folder, only_numbered=True, transform=transform, rules=rules)
    if (folder / "reconstructions.json").is_file():
        raise ValueError(
            f"{folder} holds pictures of images beside their reconstructions, which cannot be measured;"
            " give the images as samples and the tokenizer as tokenizer"
        )
    shards = sorted(folder.glob("*.tar"))
    if shards and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir()):
        return TarImages(shards, source=str(folder), transform=transform, rules=rules)
    return FolderImages(folder, transform=transform, rules=rules)
