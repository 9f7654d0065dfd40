"""Files made once and reused by later runs, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def user_cache_folder() -> Path:
    """Folder for things made once and reused by all runs: ``$XDG_CACHE_HOME/titok`` or ``~/.cache/titok``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "titok"


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Make a file through a temporary one, so that readers see all of it or nothing.

    Several processes may do so at the same time; the last one wins.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a tempfile, which only its owner could read: several people may share a folder of shards.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
