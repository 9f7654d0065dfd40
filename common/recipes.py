"""Recipes that inherit: what `base: other.yaml` means, and which file every value of a merged tree comes from.

Trees are nested dicts (sections) whose leaves are `Entry`; a list is a leaf. Where a section has a `name` and a later
source gives another one, `leave_out` takes out what the earlier sources say of the old kind alone.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from common.build import ConfigError, choose
from common.console import note

REMOVED = object()  # the value of an entry whose key a recipe takes out of its base

Kinds = Mapping[str, Callable]  # {name: what it builds}


@dataclass(frozen=True)
class Entry:
    """A value of a recipe, the file (or "command line") that it comes from, and how a command line writes it.

    The entry of a `name` that replaced another one knows that one, and the keys of its section that are of earlier
    sources.
    """

    value: Any
    origin: str
    text: str | None = None
    replaced: str = ""
    earlier: frozenset[str] = frozenset()


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
        merged = {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
        return _with_earlier(old, new, merged)
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
    return _with_earlier(base, own, merged)


def _with_earlier(old: dict, new: dict, merged: dict) -> dict:
    """`merged` whose `name` knows which keys are of the sources before the one that changed it."""
    before, name = old.get("name"), merged.get("name")
    if isinstance(before, Entry) and isinstance(name, Entry):
        given = {
            key for key, value in new.items() if not isinstance(value, Entry) or value.value is not REMOVED
        }
        # A source may give a name twice: its own keys are never those of an earlier one.
        if name.value != before.value and name.origin != before.origin:
            replaced, earlier = str(before.value), frozenset(old)
        else:
            replaced, earlier = before.replaced, before.earlier
        merged["name"] = dataclasses.replace(name, replaced=replaced, earlier=earlier - given)
    return merged


def named_sections(cls: type, prefix: str = "") -> dict[str, Kinds]:
    """{dotted section: what its `name` chooses from} of a settings dataclass, by `kinds` and `parts` of its options."""
    hints, found = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        path, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            found |= named_sections(hint, f"{path}.")
        elif "kinds" in field.metadata:
            found[path] = field.metadata["kinds"]
            found |= {f"{path}.{part}": kinds for part, kinds in field.metadata["parts"].items()}
    return found


def check_names(tree: Mapping, settings: type) -> None:
    """Raise ConfigError for a plain tree with a `name` that is unknown. Nothing is imported of what names lead to."""
    for path, kinds in named_sections(settings).items():
        section: Any = tree
        for key in path.split("."):
            section = section.get(key) if isinstance(section, Mapping) else None
        if isinstance(section, Mapping) and "name" in section and str(section["name"]) not in kinds:
            choose(path, kinds, section)


def leave_out(tree: dict, settings: type) -> dict:
    """A merged tree without keys of earlier sources that the kinds its sections are of now do not take; names them.

    What a kind takes is asked only where a later source has changed the `name`: else nothing is imported for it.
    """
    return _leave_out(tree, named_sections(settings), "")


def _leave_out(tree: dict, sections: Mapping[str, Kinds], path: str) -> dict:
    name = tree.get("name")
    # An unknown name, or a reference, is left to the strict check.
    known = path in sections and isinstance(name, Entry) and isinstance(name.value, str)
    if known and name.earlier and name.value in sections[path]:
        taken = inspect.signature(sections[path][name.value]).parameters
        left = sorted(
            key for key in name.earlier if key in plain(tree) and key != "name" and key not in taken
        )
        if left:
            note(f"{path}: left out keys of {name.replaced}: {', '.join(left)}")
        tree = {key: value for key, value in tree.items() if key not in left}
    inner = f"{path}." if path else ""
    return {
        key: _leave_out(value, sections, f"{inner}{key}") if isinstance(value, dict) else value
        for key, value in tree.items()
    }
