"""Small text files, written whole or not at all."""

import os
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Write a file through a temporary one in the same folder; what was there before stays until the new one is whole.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
