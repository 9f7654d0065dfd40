"""The table of docs/scaling.md: every ImageNet recipe on paper at 1, 8 and 64 GPUs."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from common.build import ConfigError, build_dataclass
from common.config import REPOSITORY, read_yaml
from common.console import count, say
from jobs.options.plan import PlanOptions
from jobs.options.scaling_table import ScalingTableOptions
from jobs.plan import GB, Estimate, estimate
from storage.files import write_text
from storage.locks import reserved_file
from training.generator_settings import GeneratorRun
from training.memory_plan import Plan
from training.tokenizer_settings import TokenizerRun

COUNTS = (1, 8, 64)
BEGIN, END = "<!-- table: python scripts/scaling_table.py -->", "<!-- end of the table -->"
HEAD = ("Recipe", "Parameters", "Checkpoint", "1 GPU", "8 GPUs", "64 GPUs", "From storage at 64")
GLOBAL_BATCH = re.compile(r"^# Batch: +([\d,]+) images per update", re.MULTILINE)


def scaling_table(options: ScalingTableOptions) -> None:
    """Measure and replace the table; with `recipes`, only their rows.

    Raises:
        ConfigError: the page has no table, or a recipe does not say its global batch.
    """
    with reserved_file(options.output):
        _replace_table(options)


def _replace_table(options: ScalingTableOptions) -> None:
    text = options.output.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise ConfigError(f"{options.output} has no table between {BEGIN!r} and {END!r}")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    rows = dict(table_rows(old))
    for name in options.recipes or imagenet_recipes():
        try:
            rows[name] = row(name)
        except ConfigError as error:  # such as a tokenizer that a run has to train first
            say(f"{name}: {error}")
            rows[name] = f"| `{name}` |{' – |' * (len(HEAD) - 1)}"
        say(rows[name])
        lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *(rows[n] for n in sorted(rows))]
        write_text(options.output, f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")


def imagenet_recipes() -> list[str]:
    """Recipes that train on ImageNet, below configs/."""
    folder = REPOSITORY / "configs"
    found = sorted(p for p in folder.glob("*/*.yaml") if "imagenet" in str(read_yaml(p).get("data")))
    return [str(p.relative_to(folder)) for p in found if p.name[0] != "_" and "training" in read_yaml(p)]


def table_rows(text: str) -> Iterator[tuple[str, str]]:
    """(recipe, line) of the rows of a table."""
    for line in text.splitlines():
        if match := re.match(r"\| `([^`]+)` \|", line):
            yield match[1], line


def row(name: str) -> str:
    """The row of a recipe."""
    path = REPOSITORY / "configs" / name
    tree = read_yaml(path)
    run = build_dataclass(GeneratorRun if "generator" in tree else TokenizerRun, tree)
    batch, plan = global_batch(path), None
    found: list[Estimate | None] = []
    for gpus in COUNTS:
        options = PlanOptions(gpus=gpus, global_batch=batch)
        one = estimate(run, options, plan)
        if not one.fits and gpus > 1:
            one = estimate(run, replace(options, sharding="full"), one.plan)
        plan = one.plan
        found.append(one if batch % gpus == 0 else None)
    return f"| {' | '.join(_cells(name, plan, found))} |"


def _cells(name: str, plan: Plan, found: Sequence[Estimate | None]) -> Iterator[str]:
    yield f"`{name}`"
    yield count(plan.parameters["model"])
    yield f"{plan.checkpoint / GB:.1f} GB"
    for one in found:
        yield "–" if one is None else _cell(one)
    last = found[-1]
    if last is None:
        yield "–"
        return
    tokens = "tokens" in plan.unloaded.shapes
    yield f"{last.images_per_second:,.0f} {'token rows' if tokens else 'images'}/s"


def _cell(one: Estimate) -> str:
    if not one.fits:
        return f"{one.plan.held.total / GB:.0f} GB and more: does not fit"
    size = one.plan.total(one.micro_batch) / GB
    days = one.plan.run.training.max_steps * one.step_seconds / 86400
    sharded = ", sharded" if one.plan.shards > 1 else ""
    return f"{one.micro_batch} x {one.accumulation}, {size:.0f} GB, {float(f'{days:.2g}'):g} d{sharded}"


def global_batch(path: Path) -> int:
    """Images per update, as the head of a recipe or of its base says.

    Raises:
        ConfigError: neither does.
    """
    base = re.search(r"^base: (\S+)$", path.read_text("utf-8"), re.MULTILINE)
    for file in (path, *([path.parent / base[1]] if base else [])):
        if match := GLOBAL_BATCH.search(file.read_text("utf-8")):
            return int(match[1].replace(",", ""))
    raise ConfigError(f"{path} does not say its number of images per update")
