"""Recipes that inherit: what `base: other.yaml` means, and which file every value of a merged tree comes from.

Trees are nested dicts (sections) whose leaves are `Entry`; a list is a leaf.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.build import ConfigError

REMOVED = object()  # the value of an entry whose key a recipe takes out of its base


@dataclass(frozen=True)
class Entry:
    """A value of a recipe, the file (or "command line") that it comes from, and how a command line writes it."""

    value: Any
    origin: str
    text: str | None = None


def with_origin(tree: dict, origin: str) -> dict:
    """Plain nested dicts with the origin of every value beside it."""
    return {k: with_origin(v, origin) if isinstance(v, dict) else Entry(v, origin) for k, v in tree.items()}


def plain(tree: dict) -> dict:
    """The values alone, without the keys that were removed."""
    sections = {k: plain(v) if isinstance(v, dict) else v.value for k, v in tree.items()}
    return {k: v for k, v in sections.items() if v is not REMOVED}


def entries(tree: dict, prefix: str = "") -> Iterator[tuple[str, Entry]]:
    """Dotted key and entry of every value, those of removed keys among them."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def base_file(path: Path, name: Any) -> Path:
    """The file that `base: name` in `path` means; raises ConfigError unless it is another file in the same folder."""
    if not isinstance(name, str) or Path(name).name != name or name == path.name:
        raise ConfigError(f"{path}: base={name!r} must be the name of another file in the same folder")
    base = path.parent / name
    if not base.is_file():
        raise ConfigError(f"{path}: base={name!r} does not exist in {path.parent}")
    return base


def merge(old: Any, new: Any) -> Any:
    """`new` over `old`: sections key by key, anything else replaced (the strict check finds what does not fit)."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
    # A recipe removes keys of its own base only, not those of other files.
    return old if old is not None and isinstance(new, Entry) and new.value is REMOVED else new


def inherit(base: dict, own: dict) -> dict:
    """A recipe over its base: as `merge`, and null removes a key of the base."""
    merged = dict(base)
    for key, value in own.items():
        if isinstance(value, dict):
            old = base.get(key)
            merged[key] = inherit(old if isinstance(old, dict) else {}, value)
        elif value.value is None and key in base:
            merged[key] = Entry(REMOVED, value.origin)
        else:
            merged[key] = value
    return merged
