"""All options that the arguments of a training program describe, each with its origin."""

from collections.abc import Iterator
from typing import Any

import yaml

from common.config import load_settings, merge_sources, resolve, to_tree
from common.recipes import REMOVED, Entry, entries
from jobs.options.fit_codebook import FitOptions
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun

# {key that only the options of one program have: these options}
PROGRAMS = {"tokenizer": TokenizerRun, "generator": GeneratorRun, "codebook_size": FitOptions}
COLUMN = 56  # of the comments


def show_config(arguments: list[str]) -> Iterator[str]:
    """Lines of YAML with the origin of every value as a comment; raises what the program would raise."""
    sources = merge_sources(arguments)
    tree = resolve(sources)
    settings = next((cls for key, cls in PROGRAMS.items() if key in tree), None)
    if settings is not None:
        tree = to_tree(load_settings(settings, arguments))
    yield from _lines(tree, dict(entries(sources)))


def _lines(tree: dict[str, Any], origins: dict[str, Entry], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        path, indent = f"{prefix}{key}", "  " * prefix.count(".")
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, origins, f"{path}.")
            continue
        flow = yaml.safe_dump([value], default_flow_style=True, width=10**6, sort_keys=False).strip()
        yield f"{f'{indent}{key}: {flow[1:-1]}':{COLUMN}s}  # {_origin(origins.get(path))}"


def _origin(entry: Entry | None) -> str:
    if entry is None:
        return "default"
    if entry.value is REMOVED:
        return f"default; {entry.origin} removes the value of its base"
    reference = isinstance(entry.value, str) and "${" in entry.value
    return f"{entry.origin}: {entry.value}" if reference else entry.origin
