"""Checks that everything a long job needs is there before it starts, and lists all that is missing."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import distributed
from common.braces import expand_braces
from common.config import find_file
from common.console import one_line


def require_all(needed: Mapping[str, Callable[[], Any]], name: str) -> None:
    """Look for everything on the main process; if something is missing, print a line about each and end all processes.

    Args:
        needed: {title: function that finds it or downloads it into a cache, else raises OSError or ValueError}.
        name: of what needs it, for the message.

    Raises:
        FileNotFoundError: something is missing.
    """

    def look() -> dict[str, str]:
        missing = {}
        for what, find in needed.items():
            try:
                find()
            except (OSError, ValueError) as error:
                missing[what] = one_line(error)
        # After the loop: libraries print about failed attempts in between.
        for what, reason in missing.items():
            print(f"missing: {what}: {reason}", file=sys.stderr, flush=True)
        return missing

    missing = distributed.on_main(look)  # a download may take longer than processes wait for each other
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(needed)} things that {name} needs are missing (each is explained above):"
            f" {', '.join(missing)}; nothing was done"
        )


def require_files(path: str, advice: str) -> None:
    """Raise FileNotFoundError, with what is expected there (`advice`), unless a path or all files of a pattern exist.

    A path is as written or relative to the repository, a pattern such as 'a-{00..49}.tar' as written.
    """
    if "{" not in path:
        try:
            find_file(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} does not exist; expected {advice}") from error
        return
    files = [Path(file) for file in expand_braces(path)]
    absent = [file for file in files if not file.exists()]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(files)} files of {path} do not exist, the first is {absent[0]}; expected {advice}"
        )
