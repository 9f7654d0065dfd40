"""What every example of every reader is held to.

A reader gets files that nobody vouches for. It may read them, or refuse them by an error that its docstring names,
whose message is one line and says which file. It may neither crash, nor write, nor run longer or take more memory than
below, whatever sizes the files declare.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from common.console import one_line
from tests.fuzz.mutations import damage, random_edits

CPU_SECONDS, SECONDS = 10, 300  # of one example: computing, and waiting
MEMORY = 1 << 30  # bytes of address space that one example may take
PAGE = resource.getpagesize()
LONGEST_MESSAGE = 4000  # characters


@dataclass(frozen=True)
class Case:
    """Files by their names, and what else the reader is told."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    argument: Any = None


@dataclass(frozen=True)
class Reader:
    """A function that reads files, and examples for it.

    `read(folder, argument)` finds the files of a case in `folder`; `errors` are those of its docstring. A message must
    name a file of the case, or `named`.
    """

    name: str
    cases: SearchStrategy[Case]
    read: Callable[[Path, Any], object]
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    named: str | None = None


class Wrong(AssertionError):
    """A reader did what it must not."""


class TooLong(BaseException):
    """An example takes too long."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Bound the memory and the time of what runs inside; on systems without /proc the time only."""

    def stop(number: int, _: object) -> None:
        what = f"{CPU_SECONDS} s of computing" if number == signal.SIGPROF else f"{SECONDS} s"
        raise TooLong(f"not done after {what}")

    old = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    try:
        with contextlib.suppress(FileNotFoundError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * PAGE + MEMORY, most))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (before, most))
        for number, handler in old.items():
            signal.signal(number, handler)


def outcome(reader: Reader, case: Case, root: Path) -> str:
    """ "read" or "refused"; `root` is an empty folder, and empty again afterwards.

    Raises:
        Wrong: the reader did what it must not.
    """
    folder = root / "inside"
    folder.mkdir()
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found, wrong = "read", ""
    try:
        with limits():
            reader.read(folder, case.argument)
    except reader.errors as error:
        # Where nothing is named, the command line shows the message, of arguments that may have line breaks.
        text = one_line(error) if reader.named == "" else str(error)
        found, wrong = "refused", _wrong_message(reader, case, text)
    except (Exception, TooLong) as error:
        wrong = _end_of_traceback(error)
    left = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    shutil.rmtree(folder)
    for name in os.listdir(root):
        (root / name).unlink()
    if not wrong and left != sorted(f"inside/{name}" for name in case.files):
        wrong = f"files were written: {left}"
    if (
        wrong
    ):  # not from within `except`: hypothesis compares whole chains of errors, and these can be endless
        raise Wrong(f"{reader.name}: {wrong}")
    return found


def _wrong_message(reader: Reader, case: Case, text: str) -> str:
    """What is wrong with an error message; "" if nothing is."""
    if "\n" in text or len(text) > LONGEST_MESSAGE:
        return f"the message is not a short line: {text[:1000]!r}"
    names = [name.split("/")[0] for name in case.files] + ([] if reader.named is None else [reader.named])
    if not any(name in text for name in names):
        return f"the message names no file: {text!r}"
    return ""


def _end_of_traceback(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    calls = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames if frame.lineno]
    shown = [*calls[:6], "...", *calls[-6:]] if len(calls) > 12 else calls
    return f"{type(error).__name__}: {str(error)[:500]} ({' > '.join(shown)})"


def siblings(case: Case, count: int) -> Iterator[Case]:
    """So many copies of a case, one file of each damaged at random, the same ones each time; none without files."""
    source = random.Random(zlib.crc32(b"".join(case.files.values())))
    for _ in range(count if case.files else 0):
        name = source.choice(sorted(case.files))
        changed = damage(case.files[name], random_edits(source))
        yield Case({**case.files, name: changed}, case.argument)


def run(reader: Reader, examples: int, number: int | None = None, further: int = 0) -> Counter:
    """Try so many examples, and `further` siblings of each, and count the outcomes.

    The examples are the same ones each time, or those of a seed.

    Raises:
        Wrong: the smallest case that was found is in the notes of the error.
    """
    counts: Counter = Counter()
    # A memory file system where there is one: examples are many and small.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as root:

        @settings(
            max_examples=examples,
            derandomize=number is None,
            database=None,
            deadline=None,  # of the clock, which a busy machine moves
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            print_blob=False,
        )
        @given(reader.cases)
        def test(case: Case) -> None:
            for one in (case, *siblings(case, further)):
                counts[outcome(reader, one, Path(root))] += 1

        (test if number is None else seed(number)(test))()
    return counts


def check(reader: Reader, examples: int = 120) -> None:
    """The test of a reader: nothing goes wrong, and both outcomes occur (else examples are beside the point)."""
    counts = run(reader, examples)
    least = examples // 20
    assert counts["read"] >= least and counts["refused"] >= least, dict(counts)
