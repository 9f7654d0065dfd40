"""Output in the terminal, by the main process only: banners, notices, warnings and progress bars."""

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping

from tqdm import tqdm

from common import ranks

_LONGEST_LINE = 3000  # characters


def say(text: str = "") -> None:
    """Print on the main process."""
    if ranks.is_main():
        # What the stream cannot show, such as a file name that is not UTF-8, must not end a program.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(
            text.encode(encoding, "backslashreplace").decode(encoding), flush=True
        )  # at once, also into a file


def warn(text: str) -> None:
    """Print a warning on the error stream of the main process."""
    if ranks.is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Print a notice on the error stream of the first process, also before processes have joined."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr, flush=True)


def printable(name: str) -> str:
    r"""A file name on one line: bytes that are not UTF-8 as ``\xe9``, control characters as ``\n``."""
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00  # where Python puts bytes of file names that are not UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def one_line(error: Exception) -> str:
    """The message of an error as one line; of a message that repeats a file of megabytes, the beginning."""
    text = str(error)  # an error of a data loading worker carries the worker's traceback
    if "Original Traceback (most recent call last):" in text:
        text = re.split(r"\n[\w.]+: ", text)[-1]
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."


def duration(seconds: float) -> str:
    """'47s', '5m12s', '3h07m' or '2d04h'."""
    seconds = int(max(seconds, 0))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def count(number: float) -> str:
    """'950', '4.2k', '260.9M', '1.50B'."""
    for limit, divisor, unit, digits in ((1e3, 1, "", 0), (1e6, 1e3, "k", 1), (1e9, 1e6, "M", 1)):
        if number < limit:
            return f"{number / divisor:.{digits}f}{unit}"
    return f"{number / 1e9:.2f}B"


def banner(title: str, rows: Mapping[str, object]) -> None:
    """A heading and aligned `name  value` rows."""
    say(f"\n{title}\n{'-' * len(title)}")
    width = max((len(name) for name in rows), default=0)
    for name, value in rows.items():
        say(f"{name:<{width}}  {value}")
    say()


def progress(
    items: Iterable, description: str, total: int | None = None, unit: str = "it", delay: float = 0.0
) -> Iterable:
    """Iterate with a progress bar on the main process, which appears after `delay` seconds."""
    interactive = sys.stderr.isatty()
    # A log file gets a hundred states of the bar at most, not one every few seconds of a week.
    total = len(items) if total is None and hasattr(items, "__len__") else total
    rare = {} if interactive else {"miniters": max(1, (total or 0) // 100), "maxinterval": float("inf")}
    return tqdm(
        items,
        desc=description,
        total=total,
        unit=unit,
        delay=delay,
        disable=not ranks.is_main(),
        mininterval=0.5 if interactive else 15.0 if total else 300.0,
        ascii=None if interactive else True,
        **rare,
        dynamic_ncols=interactive,
    )


class Clock:
    """A stopwatch that runs from construction or the last `lap`."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self.start

    def lap(self) -> float:
        """Seconds since the last lap; starts the next one."""
        last, self.start = self.start, time.perf_counter()
        return self.start - last
