"""Training with a recipe as a step of a larger job: in its own process, and only once."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.config import REPOSITORY, find_file, first_difference, load_settings, read_yaml, to_tree
from common.console import say
from common.signals import PassedOn

# Sections of a run that decide its result; paths and evaluation do not.
DECIDING = ("tokenizer", "generator", "losses", "discriminator", "optimizer", "schedule", "training")


def launch(program: str, arguments: Sequence[str], log: Path | None = None) -> None:
    """Run an entry point in a new process, and stop with it; what it prints goes to the file `log` if one is given.

    Raises:
        ValueError: it failed, after it has printed why.
        SystemExit: a signal came, and the program has stopped.
    """
    with nullcontext() if log is None else log.open("wb") as printed:
        command = [sys.executable, str(REPOSITORY / program), *arguments]
        child = subprocess.Popen(command, stdout=printed, stderr=printed)
        with PassedOn(child, program) as signals:
            code = child.wait()
    if signals.signal:
        sys.exit(128 + signals.signal)
    if code:
        where = "above" if log is None else log
        raise ValueError(f"{program} {' '.join(arguments)} ended with code {code}; see {where}")


def finished(folder: Path, settings: type, arguments: Sequence[str]) -> bool:
    """Whether a run folder holds the result of these arguments; raises ValueError if it holds another one."""
    if not (folder / "model.safetensors").is_file():
        return False
    wanted, stored = to_tree(load_settings(settings, arguments)), read_yaml(folder / "config.yaml")
    for key in (key for key in DECIDING if key in wanted):
        held = stored.get(key)
        if key == "generator":  # the run added the sizes of its tokens
            held = {name: held.get(name) for name in wanted[key]}
        if key == "training":  # the run has replaced what the recipe leaves to the machine
            held = {**held, **{name: "auto" for name, value in wanted[key].items() if value == "auto"}}
            if wanted[key]["global_batch_size"] is not None:
                wanted[key]["gradient_accumulation_steps"] = held["gradient_accumulation_steps"]
        difference = first_difference(held, wanted[key], key)
        if difference:
            raise ValueError(f"{folder} is finished, but {difference}; name another output")
    return True


def train_once(program: str, settings: type, folder: Path, arguments: Sequence[str]) -> None:
    """Train into a folder, which the arguments name, unless it holds the result already."""
    if finished(folder, settings, arguments):
        say(f"{folder} is trained")
    else:
        launch(program, arguments)


def run_recipe(program: str, settings: type, recipe: str, folder: Path, overrides: Mapping[str, Any]) -> None:
    """As `train_once`, with a recipe; omits overrides that are None."""
    overrides = {"config": find_file(recipe), "experiment.output_dir": folder, **overrides}
    arguments = [f"{key}={value}" for key, value in overrides.items() if value is not None]
    train_once(program, settings, folder, arguments)
