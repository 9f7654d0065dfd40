"""Try many hostile inputs on the readers of files.

    python -m tests.fuzz examples=100000
    python -m tests.fuzz examples=5000 readers=[config,tar] processes=2 seed=7 siblings=0

Examples are drawn in batches, each from a seed of its own and in a process of its own, so that a crash of the
interpreter is a finding like any other. What was found is printed as the smallest case that shows it, with the seed of
its batch; a reader is left after its first finding. The table at the end is the result; exit code 1 says that something
was found.
"""

import faulthandler
import importlib
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from common.build import check_least
from common.config import option, run_script
from common.console import duration
from tests.fuzz.harness import SECONDS, Reader, run

BATCH = 1000
_LONGEST = 4 * SECONDS  # seconds of a batch
_MOST_SHOWN = 5000  # characters of a finding


@dataclass(kw_only=True)
class FuzzOptions:
    """How many examples for whom."""

    examples: int = option(10_000, "for each reader")
    readers: list[str] = option([], "names; empty = all")
    processes: int = option(os.cpu_count() or 1, "at a time")
    seed: int = option(0, "of the examples")
    siblings: int = option(9, "copies of each example with random damage, which count as examples, too")

    def __post_init__(self) -> None:
        check_least(self, examples=1, processes=1, seed=0, siblings=0)


def readers() -> dict[str, Reader]:
    """All readers by name."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("test_*.py"))
    modules = [importlib.import_module(f"tests.fuzz.{name}") for name in names]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Reader)]
    return {reader.name: reader for reader in found}


def _batch(reader: Reader, examples: int, seed: int, further: int, answer: Connection) -> None:
    """In a child process: (outcomes, what was found or "")."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (progress bars of readers; the child ends soon)
    faulthandler.enable(sys.__stderr__)
    sys.stdout = sys.stderr
    warnings.simplefilter("ignore")
    try:
        answer.send((run(reader, examples, seed, further), ""))
    except BaseException as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        answer.send((Counter(), f"{type(error).__name__}: {error}\n{notes}"))


class Progress:
    """The outcomes of one reader, and a line about them now and then."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.counts, self.found = name, total, Counter(), ""
        self.began = self.said = time.monotonic()
        self.took = 0.0  # seconds

    def add(self, counts: Counter, found: str, number: int) -> None:
        self.counts += counts
        if found and not self.found:
            self.found = found
            print(f"{self.name}, batch of seed {number}:\n{found[:_MOST_SHOWN]}", flush=True)
        now, done = time.monotonic(), self.counts.total()
        self.took = now - self.began
        if now - self.said > 10 or done >= self.total:
            self.said, rate = now, done / (now - self.began)
            left = duration((self.total - done) / max(rate, 1e-9))
            print(f"{self.name}: {done} of {self.total} examples, {rate:.0f}/s, {left} left", flush=True)

    def row(self) -> str:
        cells = [
            self.name,
            self.counts.total(),
            self.counts["read"],
            self.counts["refused"],
            f"{self.took:.0f} s",
        ]
        return "| " + " | ".join(map(str, [*cells, "yes" if self.found else "no"])) + " |"


def try_reader(
    reader: Reader, options: FuzzOptions, context: multiprocessing.context.BaseContext
) -> Progress:
    """Run all batches of one reader, several at a time."""
    progress, started, running = Progress(reader.name, options.examples), 0, {}
    while (started < options.examples and not progress.found) or running:
        while started < options.examples and len(running) < options.processes and not progress.found:
            examples, number = min(BATCH, options.examples - started), options.seed + started
            drawn = -(-examples // (options.siblings + 1))
            answer, theirs = context.Pipe(duplex=False)
            batch = (reader, drawn, number, options.siblings, theirs)
            child = context.Process(target=_batch, args=batch, daemon=True)
            child.start()
            theirs.close()
            running[answer] = (child, number, time.monotonic() + _LONGEST)
            started += examples
        for answer in wait(list(running), timeout=5.0):
            child, number, _ = running.pop(answer)
            progress.add(*_received(answer, child.join, lambda child=child: child.exitcode), number)
        for answer, (child, number, deadline) in list(running.items()):
            if time.monotonic() > deadline:
                child.kill()
                running.pop(answer)
                progress.add(Counter(), f"no end after {_LONGEST} s", number)
    return progress


def _received(answer: Connection, join: Callable, code: Callable) -> tuple[Counter, str]:
    try:
        counts, found = answer.recv()
    except EOFError:
        join()
        return Counter(), f"the process died with exit code {code()}"
    join()
    return counts, found


def fuzz(options: FuzzOptions) -> None:
    """Try all readers, and print the table."""
    torch.set_num_threads(1)
    known, context = readers(), multiprocessing.get_context("fork")
    if unknown := set(options.readers) - known.keys():
        raise ValueError(f"readers={sorted(unknown)} are unknown; choose from {', '.join(known)}")
    tried = [try_reader(known[name], options, context) for name in options.readers or known]
    print("| Reader | Examples | Read | Refused | Time | Fault found |\n|---|---|---|---|---|---|")
    print("\n".join(one.row() for one in tried), flush=True)
    if any(one.found for one in tried):
        sys.exit(1)


if __name__ == "__main__":
    run_script(fuzz, FuzzOptions, __doc__)
