"""Images inside larger files, `.npz`/`.npy` arrays and tar shards, and the function that opens any path.

Arrays follow the layout of the ADM evaluator (arXiv:2105.05233): `arr_0` uint8 [N, H, W, 3], `arr_1` integer labels.
"""

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from common import distributed
from common.console import progress
from common.images import PixelRules, pil_to_tensor
from evaluator.image_stream import EncodedImages, FolderImages, ImageStream, Transform, digest_lines
from evaluator.pixels import array_problem
from storage.arrays import DAMAGE, ArrayFile, array_bytes, check_member, damage_named, read_header, stored_at
from storage.left_out import LeftOut
from storage.open_files import OpenFiles
from storage.shard_paths import local_shards
from storage.tar_members import read_shards
from storage.tar_samples import TarSample, read_samples

PIXELS, LABELS = "arr_0", ("arr_1", "labels")
_FIRST = 1 << 22  # bytes of values that are looked at for a message
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
                self._start, first = file.position, None
                held = file.size - file.position
                if dtype.kind in "fiu" and dtype != np.uint8:  # refused, with the values that it holds
                    values = min(math.prod(shape), _FIRST // dtype.itemsize)
                    content = file.read(values * dtype.itemsize)
                    first = np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype)
            self._checks = self._read_directory()
        if problem := array_problem(shape, dtype, fortran, first):
            raise ValueError(f"{path} holds {problem}")
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

    def images(self, positions: Sequence[int]) -> Iterator[torch.Tensor]:
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

    def version(self) -> str:
        if self.path.suffix == ".npz":  # checksums see every change
            return self.digest()
        return digest_lines([self.digest(), str(self.path.stat().st_mtime_ns)])


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
    """The samples of uncompressed tar shards, in the order of the shards and of their members.

    Every process makes it; one reads the headers for all.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard is damaged, cut short or compressed, or there is no image.
    """

    def __init__(
        self,
        shards: Sequence[str],
        *,
        source: str,
        transform: Transform | None = None,
        rules: PixelRules | None = None,
    ) -> None:
        self._shards = list(shards)
        self._samples, self.left_out = distributed.on_main(lambda: _list_shards(self._shards))
        labels = [sample.label for _, sample in self._samples]
        if labels and None not in labels:
            self.labels = np.array(labels, dtype=np.int64)
        self._files = OpenFiles()
        names = [f"{os.path.basename(self._shards[shard])}/{sample.name}" for shard, sample in self._samples]
        super().__init__(source=source, names=names, transform=transform, rules=rules)

    def content(self, position: int) -> bytes:
        shard, sample = self._samples[position]
        return self._files.read(self._shards[shard], sample.offset, sample.size)

    def digest(self) -> str:
        pairs = zip(self.names, self._samples, strict=True)
        return digest_lines(f"{name}\t{sample.size}" for name, (_, sample) in pairs)

    def version(self) -> str:
        return digest_lines([self.digest(), *(str(os.stat(shard).st_mtime_ns) for shard in self._shards)])


def _list_shards(shards: Sequence[str]) -> tuple[list[tuple[int, TarSample]], LeftOut]:
    """All samples with the number of their shard, and what is left out."""
    for shard in shards:  # all are looked for before the first is read
        if not os.path.isfile(shard):
            raise FileNotFoundError(f"shard {shard} does not exist")
    listed = progress(
        read_shards(read_samples, shards), "listing shards", total=len(shards), unit="shard", delay=3.0
    )
    samples, left_out = [], LeftOut()
    for number, found in enumerate(listed):
        samples += [(number, sample) for sample in found.found]
        left_out.extend(found.left_out, f"{os.path.basename(shards[number])}: ")
    return samples, left_out


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
    text, place = str(path), Path(path)
    if place.is_dir() and (made_here := _made_here(place, transform, rules)) is not None:
        return made_here
    if (shards := local_shards(text)) is not None:
        return TarImages(shards, source=text, transform=transform, rules=rules)
    if place.is_dir():
        return FolderImages(place, transform=transform, rules=rules)
    if not place.exists():
        raise FileNotFoundError(f"images {path} do not exist")
    if place.suffix in (".npz", ".npy"):
        return ArrayImages(place, transform=transform)
    raise ValueError(f"images {path} are of no known kind; expected a folder, .npz, .npy or .tar")


def _made_here(folder: Path, transform: Transform | None, rules: PixelRules | None) -> ImageStream | None:
    """The samples in a folder of `sample_imagenet.py`; None for another one, ValueError for pictures of pairs."""
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
    return None
