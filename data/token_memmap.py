"""Tokens of a whole data set in one memory-mapped file.

Layout, little-endian: magic (8 bytes), length of the JSON header and its CRC-32 and number of missing rows (uint64
each), JSON header; at the next multiple of 4096 labels int64 [n], -1 for a row that was never written; at the next
multiple of 4096 tokens uint16 or uint32 [n, crops, N]. Sizes follow from the header, so opening reads nothing else.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.source import CorruptSample, Source
from storage.json_files import parse_json
from storage.rows import RowFile

_MAGIC = b"TOKENS\x00\x01"
_PREAMBLE = struct.Struct("<8sQQQ")
_PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class TokenHeader:
    """What tokens are, and which tokenizer made them."""

    num_images: int  # rows n
    crops: int  # versions of every image
    num_tokens: int  # tokens N of one version
    codebook_size: int  # tokens are in 0..codebook_size-1
    tokenizer: str  # name or folder
    weight_hash: str  # tokens of other weights mean something else; empty: unknown
    image_size: int  # side of the images it saw
    class_names: list[str]  # a name per label
    source: str = ""  # for imported tokens, what the file of the other program was (``data.token_exchange``)
    precision: str = "float32"  # of the tokenizer's computation
    alpha: str = "white"  # how image files became pixels (``common.images.PixelRules``)
    orientation: str = "stored"
    data: dict[str, Any] = field(default_factory=dict)  # the section of the images, but where they lay

    def __post_init__(self) -> None:
        for key in ("num_images", "crops", "num_tokens", "codebook_size", "image_size"):
            require_positive(key, getattr(self, key))
        if self.codebook_size > 2**32:
            raise ValueError(f"codebook_size={self.codebook_size} is more than 32 bits hold")
        if not isinstance(self.class_names, list) or not self.class_names:
            raise ValueError(f"class_names={self.class_names!r} must be a list of names")
        if not isinstance(self.data, dict):
            raise ValueError(f"data={self.data!r} must be a section")

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.codebook_size <= 2**16 else "<u4")

    @property
    def row_bytes(self) -> int:
        return self.crops * self.num_tokens * self.dtype.itemsize


def require_positive(key: str, value: object) -> None:
    """Raise a ValueError that names `key`, unless the value is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key}={value!r} must be a positive whole number")


@dataclass(frozen=True)
class _Layout:
    header: TokenHeader
    missing: int
    labels_at: int
    tokens_at: int

    @property
    def file_bytes(self) -> int:
        return self.tokens_at + self.header.num_images * self.header.row_bytes

    def labels(self, path: Path) -> np.memmap:
        return np.memmap(path, "<i8", "r", self.labels_at, (self.header.num_images,))

    def tokens(self, path: Path) -> np.memmap:
        shape = (self.header.num_images, self.header.crops, self.header.num_tokens)
        return np.memmap(path, self.header.dtype, "r", self.tokens_at, shape)


def _encode(header: TokenHeader, missing: int = 0) -> bytes:
    facts = asdict(header)
    for key, usual in (("precision", "float32"), ("alpha", "white"), ("orientation", "stored"), ("data", {})):
        if facts[key] == usual:  # as in files from before there was a choice
            del facts[key]
    text = json.dumps(facts).encode()
    return _PREAMBLE.pack(_MAGIC, len(text), zlib.crc32(text), missing) + text


def _layout(header: TokenHeader, missing: int = 0) -> _Layout:
    labels_at = _next_page(len(_encode(header)))
    return _Layout(header, missing, labels_at, _next_page(labels_at + 8 * header.num_images))


def _next_page(offset: int) -> int:
    return -(-offset // _PAGE) * _PAGE


def _read_layout(path: Path) -> _Layout:
    if not path.is_file():
        raise FileNotFoundError(f"token file {path} does not exist")
    with open(path, "rb") as file:
        start = file.read(_PREAMBLE.size)
        if len(start) < _PREAMBLE.size or not start.startswith(_MAGIC[:6]):
            raise ValueError(f"{path} is not a token file; make one with scripts/pretokenize.py")
        magic, length, checksum, missing = _PREAMBLE.unpack(start)
        if magic != _MAGIC:
            raise ValueError(
                f"token file {path} has format version {magic[-1]}; this program reads {_MAGIC[-1]}"
            )
        text = file.read(min(length, path.stat().st_size))
    if len(text) < length or zlib.crc32(text) != checksum:
        raise ValueError(f"token file {path} has a damaged header")
    known = {known.name for known in fields(TokenHeader)}  # later versions may add some
    try:
        layout = _layout(TokenHeader(**{k: v for k, v in parse_json(text).items() if k in known}), missing)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"token file {path} has an unusable header: {error}") from error
    size = path.stat().st_size
    if size != layout.file_bytes:
        what = "is cut short" if size < layout.file_bytes else "has bytes at its end that do not belong to it"
        raise ValueError(f"token file {path} {what}: {size} bytes, its header announces {layout.file_bytes}")
    return layout


class TokenMemmap(Source):
    """Tokens of one crop per image, int64 [N]: a random one each time with ``random_crop``, else the first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a token file, damaged, or cut short.
    """

    item_key = "tokens"

    def __init__(self, *, path: Path, random_crop: bool = True) -> None:
        self.path = Path(path)
        layout = _read_layout(self.path)
        self.header = layout.header
        self.class_names = list(self.header.class_names)
        self.item_shape = (self.header.num_tokens,)
        self.random_crop = random_crop
        self._tokens, self.labels = layout.tokens(self.path), layout.labels(self.path)
        # Rows of unreadable images were never written; where there are any, examples are the others.
        self._rows = np.flatnonzero(self.labels >= 0) if layout.missing else None
        if self._rows is not None:
            self.labels = np.asarray(self.labels[self._rows])
        if not len(self.labels):
            raise ValueError(f"token file {self.path} holds no tokens")

    def __reduce__(self) -> tuple:
        # Workers that are not forked open the file again: a pickled memory map would carry all tokens along.
        return partial(TokenMemmap, path=self.path, random_crop=self.random_crop), ()

    def load(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        return self.load_many([index], [rng])[0], int(self.labels[index])

    def load_many(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> torch.Tensor:
        indices = np.asarray(indices, dtype=np.int64)
        crops = [int(rng.integers(self.header.crops)) if self.random_crop else 0 for rng in rngs]
        rows = indices if self._rows is None else self._rows[indices]
        tokens = self._tokens[rows, crops].astype(np.int64)
        labels = self.labels[indices]
        wrong = (
            (tokens >= self.header.codebook_size).any(1) | (labels < 0) | (labels >= len(self.class_names))
        )
        if wrong.any():
            name = f"{self.path}: row {rows[wrong.argmax()]}"
            raise CorruptSample(name, "a token or label is out of range; the file is damaged")
        return torch.from_numpy(tokens)

    def all_crops(self, start: int, stop: int) -> np.ndarray:
        """Every crop of examples start..stop-1 as in the file: uint16 or uint32 [stop - start, crops, N].

        Raises:
            ValueError: a token is out of range; the file is damaged.
        """
        rows = slice(start, stop) if self._rows is None else self._rows[start:stop]
        tokens = np.asarray(self._tokens[rows])
        if tokens.size and tokens.max() >= self.header.codebook_size:
            rows = f"rows {start}..{stop - 1}"
            raise ValueError(f"{self.path}: a token of {rows} is out of range; the file is damaged")
        return tokens


class TokenWriter:
    """Fills a token file, in any order, from any number of processes with a writer each.

    The main process calls ``create``, then every process makes a writer and writes rows of its own, then, when all
    have closed theirs, the main process calls ``finish``, which gives the file its name. Until then rows are in
    ``.<name>.part`` beside it. What an interrupted job has written is kept by the next ``create`` with the same
    header; ``missing_rows`` says what is left to do.
    """

    def __init__(self, path: Path) -> None:
        self._part = _part(Path(path))
        layout = _read_layout(self._part)
        self.header = layout.header
        self._labels, self._tokens = RowFile(layout.labels(self._part)), RowFile(layout.tokens(self._part))

    @staticmethod
    def unfinished(path: Path) -> TokenHeader | None:
        """The header of what an interrupted job has written for ``path``, if there is something."""
        part = _part(Path(path))
        try:
            return _read_layout(part).header if part.exists() else None
        except ValueError:
            return None  # left behind by a job that died while making it

    @staticmethod
    def unfinished_labels(path: Path) -> np.ndarray:
        """int64 [n] of what `unfinished` found, -1 for rows that are not written yet."""
        part = _part(Path(path))
        return _read_layout(part).labels(part)

    @staticmethod
    def create(path: Path, header: TokenHeader) -> None:
        """Make the unfinished file, with disk space for all rows. Raises OSError if the disk is full."""
        path, part = Path(path), _part(Path(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        if TokenWriter.unfinished(path) == header:
            return
        layout = _layout(header)
        try:
            with open(part, "wb") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk shows now and not hours later
                    os.posix_fallocate(file.fileno(), 0, layout.file_bytes)
                file.truncate(layout.file_bytes)
                file.seek(layout.labels_at)
                for start in range(0, header.num_images, 2**20):
                    count = min(2**20, header.num_images - start)
                    file.write(np.full(count, -1, dtype="<i8").tobytes())
                file.seek(0)
                file.write(
                    _encode(header)
                )  # last: a file with a header says of every row whether it is written
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def missing_rows(self) -> np.ndarray:
        """int64 [m], rows that are not written yet."""
        return np.flatnonzero(self._labels.rows < 0)

    def write(self, rows: Sequence[int], tokens: np.ndarray, labels: Sequence[int]) -> None:
        """Set rows [k] to tokens [k, crops, N] and labels [k].

        Raises:
            ValueError: a shape or value does not fit the header.
            OSError: the disk is full.
        """
        header = self.header
        tokens, labels = np.asarray(tokens), np.asarray(labels, dtype="<i8")
        expected = (len(rows), header.crops, header.num_tokens)
        if tokens.shape != expected:
            raise ValueError(f"tokens of shape {tokens.shape} do not fit {expected}")
        for what, values, limit in (
            ("rows", np.asarray(rows), header.num_images),
            ("tokens", tokens, header.codebook_size),
            ("labels", labels, len(header.class_names)),
        ):
            if values.size and not (values.min() >= 0 and values.max() < limit):
                raise ValueError(f"{what} in {values.min()}..{values.max()} must be in 0..{limit - 1}")
        if len(labels) != len(rows):
            raise ValueError(f"{len(labels)} labels do not fit {len(rows)} rows")
        # Labels go last, so that a row with a label is complete whenever the job is killed.
        self._tokens.write(rows, tokens)
        self._labels.write(rows, labels)

    def close(self) -> None:
        self._tokens.close()
        self._labels.close()

    @staticmethod
    def discard(path: Path) -> None:
        _part(Path(path)).unlink(missing_ok=True)

    @staticmethod
    def finish(path: Path) -> int:
        """Give the file its name; returns the number of rows never written, which readers leave out."""
        path, part = Path(path), _part(Path(path))
        layout = _read_layout(part)
        missing = int((layout.labels(part) < 0).sum())
        with open(part, "r+b") as file:
            file.write(_encode(layout.header, missing))
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name
        os.replace(part, path)
        return missing


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
