"""Files and folders that are written whole or not at all, and the room they need.

A process that is killed leaves the old file or the new one under its name, and at most a `.<name>....part` beside it.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors import SafetensorError

from common.home import at_home
from common.images import to_uint8

OUTPUT_ROOM = 1 << 20  # bytes: more than any result file takes


class WriteError(OSError):
    """A file or folder cannot be written: the disk is full or the place is read-only; the message names it."""


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn what goes wrong with writing into a `WriteError` that names `path`."""
    try:
        yield
    except WriteError:  # an inner block has named its path
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"{path} cannot be written: {reason}") from error


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary file that replaces `path` when the block ends, and is removed if the block fails.

    Several processes may write the same file; the last one wins. Any OSError becomes a `WriteError`.
    """
    path = Path(path)
    temporary = _part_of(path)  # the same disk: a rename is atomic
    with errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder that replaces `path` when the block ends, and is removed if the block fails.

    Only one process at a time may write a folder. Any OSError becomes a `WriteError`.
    """
    path = Path(path)
    temporary, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old.part")
    with errors_named(path):
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)  # removal takes long, and half a folder must not stay under this name
            try:
                os.replace(temporary, path)
            except OSError:
                if old.exists():
                    old.rename(path)  # the previous folder comes back
                raise
        finally:
            for folder in (temporary, old):
                shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all; raises `WriteError`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8")  # whatever the locale is


def write_json(path: str | Path, value: object, default: Callable[[Any], Any] | None = None) -> None:
    """Write JSON whole or not at all; `default` converts other types, as in `json.dumps`; raises `WriteError`."""
    write_text(path, json.dumps(value, indent=1, default=default) + "\n")


def write_yaml(path: str | Path, tree: Mapping[str, Any]) -> None:
    """Write nested dicts as YAML whole or not at all; raises `WriteError`."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(tree))))


def save_png(path: str | Path, image: torch.Tensor) -> None:
    """Write one image [3, H, W], float in [0, 1] or uint8, as PNG whole or not at all; raises `WriteError`."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    with atomic_file(path) as temporary:
        Image.fromarray(pixels.cpu().permute(1, 2, 0).numpy()).save(temporary, format="PNG")


def check_output_file(
    path: str | Path, *, key: str = "output", begins: bytes = b"", room: int = OUTPUT_ROOM
) -> None:
    """Make sure, before hours of work, that a file can be written at the end; leaves nothing behind.

    Args:
        key: the option that names the file, for messages.
        begins: how a file of this kind begins, after blanks; an existing one of another kind is not replaced.
        room: bytes that must be free.

    Raises:
        ValueError: the path is a folder or a device, a parent is no folder, or the file there is of another kind.
        WriteError: the folder is read-only, the name is not allowed, or the disk has no room.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{key}={path} is a folder; name a file, such as {path / f'result{path.suffix}'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{key}={path} is no ordinary file")  # a rename would replace a device
    if path.is_file() and path.stat().st_size and not _first_bytes(path).lstrip().startswith(begins):
        raise ValueError(f"{key}={path} exists and is a file of another kind; choose another name")
    _check_parents(path.parent, f"{key}={path}")
    _try_room(_part_of(path), room, f"{key}={path}")


def check_output_folder(path: str | Path, *, key: str = "output", room: int = OUTPUT_ROOM) -> None:
    """As `check_output_file`, for a folder: it can be made, and files can be written in it."""
    path = Path(path)
    _check_parents(path, f"{key}={path}")
    _try_room(_part_of(path / "output"), room, f"{key}={path}")


def _check_parents(folder: Path, named: str) -> None:
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists() or place.is_symlink():
            what = "a link to nothing" if place.is_symlink() and not place.exists() else "a file"
            raise ValueError(f"{named}: {place} is {what}, not a folder")


def _try_room(path: Path, room: int, named: str) -> None:
    """Make a file of `room` bytes, and the folders that it needs, and remove all of them."""
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    try:
        with errors_named(Path(named)):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(path, "xb") as file:
                    if hasattr(os, "posix_fallocate"):  # takes the blocks, which a sparse file would not
                        os.posix_fallocate(file.fileno(), 0, room)
                    else:
                        file.write(bytes(room))
            finally:
                path.unlink(missing_ok=True)
    finally:
        for folder in made:
            with suppress(OSError):  # not made, or another program has put something there
                folder.rmdir()


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def require_space(folder: Path, needed: int, what: str, key: str = "") -> None:
    """Raise ValueError if the disk of `folder`, which may not exist yet, has fewer than `needed` bytes free.

    The message says `what` needs them, and which option (`key`) names the folder.
    """
    free = free_bytes(folder)
    if free < needed:
        place = f"{key}={folder}" if key else f"{folder}"
        raise ValueError(f"{place}: {free / 2**20:.0f} MiB free, but {what} needs {needed / 2**20:.0f} MiB")


def free_bytes(folder: Path) -> int:
    """Free space on the disk where `folder` is or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def user_cache_folder() -> Path:
    """Folder for files that all runs share: `$XDG_CACHE_HOME/titok` or `~/.cache/titok`."""
    root = at_home(os.environ.get("XDG_CACHE_HOME"))
    return (Path(root) if root else Path.home() / ".cache") / "titok"


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    found, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            found.update(buffer[:count])
    return found.hexdigest()
