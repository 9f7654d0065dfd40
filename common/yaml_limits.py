"""Bounds on what a YAML text may grow into: a file of a kilobyte can name a tree that no memory holds.

Aliases (`*name`) repeat a part of the text, interpolations (`${key}`) a part of the tree, each any number of times and
one inside the other. Both are counted before anything is built.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from common.build import ConfigError

MOST_NODES = 200_000  # keys and values; a list of 20,000 class names is an ordinary file
MOST_BYTES = 1 << 24  # of a file
DEEPEST = 40  # sections in sections, interpolations of interpolations
MOST_INDIRECT = 8  # interpolations whose key is an interpolation

# The key of ${key}, or the first argument of a resolver, which may be one; relative keys begin with dots.
_REFERENCE = re.compile(r"\$\{\s*(?:[\w.]+:\s*)?['\"]?(\.*)([^\s${}:,'\"]+)")
_INDIRECT = re.compile(r"\$\{[^${}:]*\$\{|oc\.(?:decode|create|select)[^}]*[\\$]")


@dataclass
class _Size:
    nodes: int = 1
    height: int = 1

    def add(self, other: "_Size") -> None:
        self.nodes, self.height = self.nodes + other.nodes, max(self.height, other.height + 1)


def check_text(text: str) -> None:
    """Raise ConfigError if a YAML text is too large or too deep once its aliases are written out, or wrongly tagged.

    Raises:
        YAMLError: it is no YAML.
    """
    anchors: dict[str, _Size | None] = {}
    open_sizes: list[tuple[_Size, str | None]] = [(_Size(), None)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            anchors[event.anchor] = None  # until it ends
            open_sizes.append((_Size(), event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = open_sizes.pop()
            anchors[anchor] = size
            open_sizes[-1][0].add(size)
        elif isinstance(event, yaml.ScalarEvent):
            _check_tag(event)
            anchors[event.anchor] = _Size()
            open_sizes[-1][0].add(_Size())
        elif isinstance(event, yaml.AliasEvent):
            known = anchors.get(event.anchor, _Size())  # unknown ones are the parser's to refuse
            if known is None:
                raise ConfigError(f"*{event.anchor} stands inside of what it repeats")
            open_sizes[-1][0].add(known)
        size = open_sizes[-1][0]
        _check(_Size(size.nodes, size.height + len(open_sizes) - 1), "aliases")


def _check_tag(event: yaml.ScalarEvent) -> None:
    """Raise ConfigError for `!!bool maybe`: PyYAML fails at it in ways of its own."""
    if event.tag is None:
        return
    try:
        yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(event.tag, event.value))
    except (ValueError, LookupError, AttributeError):
        kind, line = event.tag.rpartition(":")[2], event.start_mark.line + 1
        raise ConfigError(f"{event.value[:40]!r} in line {line} is no {kind}") from None


def check_interpolations(tree: Mapping[str, Any]) -> None:
    """Raise ConfigError if a tree is too large or too deep once its interpolations are resolved.

    Interpolations that lead to themselves or to nothing are left to the resolver.
    """
    known: dict[tuple, _Size | None] = {}
    indirect = 0

    def size_of(path: tuple[str, ...], value: Any, depth: int) -> _Size:
        nonlocal indirect
        if path in known:
            return known[path] or _Size()  # None: it leads to itself
        _check(_Size(1, depth), "interpolations")
        known[path], size = None, _Size()
        size.nodes += (
            len(value) // 64 if isinstance(value, str) else 0
        )  # text that is repeated takes memory, too
        if isinstance(value, str) and "${" in value:
            indirect += len(_INDIRECT.findall(value))
            for target in _targets(path, value):
                if (found := _find(tree, target)) is not None:
                    size.add(size_of(target, found[0], depth + 1))
        else:
            for key, child in _children(value):
                size.add(size_of((*path, key), child, depth + 1))
        known[path] = size
        _check(size, "interpolations")
        return size

    size_of((), tree, 1)
    if indirect > MOST_INDIRECT:
        raise ConfigError(f"{indirect} interpolations inside of interpolations are more than {MOST_INDIRECT}")


def _check(size: _Size, what: str) -> None:
    if size.nodes > MOST_NODES:
        raise ConfigError(f"more than {MOST_NODES} keys and values, counting {what}")
    if size.height > DEEPEST + 1:
        raise ConfigError(f"more than {DEEPEST} levels, counting {what}")


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(i), child) for i, child in enumerate(value))


def _targets(path: tuple[str, ...], text: str) -> Iterator[tuple[str, ...]]:
    for dots, key in _REFERENCE.findall(text):
        base = path[: max(0, len(path) - len(dots))] if dots else ()
        yield (*base, *(part for part in re.split(r"[.\[\]]", key) if part))


def _find(tree: Any, path: tuple[str, ...]) -> tuple[Any] | None:
    for part in path:
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
            continue
        found = [
            child for key, child in _children(tree) if key == part
        ]  # of a list, or a key that is a number
        if not found:
            return None
        tree = found[0]
    return (tree,)
