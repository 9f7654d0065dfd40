"""Files and folders that are written whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import OmegaConf
from PIL import Image

from common.images import to_uint8


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary file beside `path` that gets its name when the block ends, and is removed if it fails.

    What was there before stays until then. Several processes may write the same file; the last one wins.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a tempfile, which only its owner could read: several people may share a folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file in its place that only its owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path` that gets its name when the block ends, and is removed if it fails.

    One process at a time may write a folder: what a killed one left behind is removed first.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def write_yaml(path: str | Path, tree: Mapping) -> None:
    """Write nested dicts as YAML, whole or not at all."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(tree))))


def save_png(path: str | Path, image: torch.Tensor) -> None:
    """Write one image [3, H, W], float in [0, 1] or uint8, as PNG, whole or not at all."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    with atomic_file(path) as temporary:
        Image.fromarray(pixels.cpu().permute(1, 2, 0).numpy()).save(temporary, format="PNG")
