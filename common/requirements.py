"""Looking for everything that a long job needs before it starts, and saying at once all that is missing."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from braceexpand import UnbalancedBracesError, braceexpand

from common import distributed
from common.config import find_file, one_line


def require_all(needed: Mapping[str, Callable[[], Any]], name: str) -> None:
    """Look for everything on the main process; if something is missing, list it all and end all processes.

    Args:
        needed: what it is called, and a function that finds it (or downloads it into a cache), else raises OSError or
            ValueError with a message that says what to do.
        name: of what needs it.

    Raises:
        FileNotFoundError: something is missing; the main process has printed a line about each on the error stream.
    """
    missing: dict[str, str] = {}
    for what, find in needed.items() if distributed.is_main() else ():
        try:
            find()
        except (OSError, ValueError) as error:
            missing[what] = one_line(error)
    # Printed last: libraries write about their failed attempts in between.
    for what, reason in missing.items():
        print(f"missing: {what}: {reason}", file=sys.stderr, flush=True)
    missing = distributed.gather_objects(missing)[0]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(needed)} things that {name} needs are missing (each is explained above):"
            f" {', '.join(missing)}; nothing was done"
        )


def require_files(path: str, advice: str) -> None:
    """Make sure that a path, or everything that a brace pattern names, exists.

    Args:
        path: as written, else relative to the repository; "a-{00..49}.tar" as written.
        advice: what is expected there, for the message.

    Raises:
        FileNotFoundError: something is missing; the message names the first and counts.
        ValueError: the braces do not match.
    """
    if "{" not in path:
        try:
            find_file(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} does not exist; expected {advice}") from error
        return
    try:
        files = [Path(file).expanduser() for file in braceexpand(path)]
    except UnbalancedBracesError as error:
        raise ValueError(f"{path}: braces do not match") from error
    absent = [file for file in files if not file.exists()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(files)} files of {path} do not exist, the first is {absent[0]}; expected {advice}"
        )
