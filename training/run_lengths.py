"""Lengths of a run that are given as shares of its steps: turned into steps, and compared after a change of length."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from common.build import ConfigError
from common.shares import Share
from training.checkpoint import CheckpointFolder

Settings = TypeVar("Settings")


def in_steps(settings: Settings, max_steps: int, path: str = "") -> Settings:
    """A copy of a settings dataclass, and of all in it, with every share of a run of `max_steps` as steps.

    The original keeps the shares: it is what a run stores, so that another `training.max_steps` moves them.

    Raises:
        ConfigError: the lengths do not fit together.
    """
    changed = {}
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            changed[field.name] = in_steps(value, max_steps, f"{key}.")
        elif isinstance(value, Share):
            changed[field.name] = value.of(max_steps)
        elif isinstance(value, list) and any(isinstance(v, Share) for v in value):
            changed[field.name] = [v.of(max_steps) if isinstance(v, Share) else v for v in value]
    try:
        return dataclasses.replace(settings, **changed) if changed else settings
    except ConfigError as error:
        raise ConfigError(f"with training.max_steps={max_steps}: {error}") from error


def begun_again(settings: Any, max_steps: int, folder: Path) -> list[str]:
    """What a run in `folder` has passed and would pass once more, because a longer run moves its shares; a line each.

    For a share of `settings` that ended before the newest checkpoint by the run's length so far, and ends after it
    by `max_steps`.
    """
    checkpoints = CheckpointFolder(folder, keep=1)
    old, steps = checkpoints.newest_config(), checkpoints.steps()
    before = old.get("training", {}).get("max_steps")
    if not isinstance(before, int) or before == max_steps:
        return []
    lines = []
    for key, share in _shares(settings):
        was, now = share.of(before), share.of(max_steps)
        if _stored(old, key) == share and was <= steps[-1] < now:
            lines.append(
                f"{key}={share} was step {was} of training.max_steps={before} and is now step {now} of {max_steps}:"
                f" the run is at step {steps[-1]} and comes before it again; write {key}={was} to keep it passed"
            )
    return lines


def _shares(settings: Any, path: str = "") -> Iterator[tuple[str, Share]]:
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _shares(value, f"{key}.")
        elif isinstance(value, Share):
            yield key, value


def _stored(tree: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
