"""The config merger: YAML files with a base, and overrides."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from common.config import load_settings, option
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import damaged, garbage, numbers, texts

_KEYS = ["model", "width", "experiment", "training", "a", "b", "max_steps", "1", "é", "a.b", "null"]
_TEXTS = [
    "${model.width}",
    "${a}",
    "${b}",
    "${.a}",
    "${..b}",
    "${oc.env:HOME}",
    "${oc.decode:null}",
    "${nowhere}",
]
_TEXTS += [
    "${a}${b}",
    "${${a}}",
    "${oc.select:a}",
    "${",
    "$",
    "}",
    "???",
    "007",
    "1e3",
    "no",
    "12:30",
    "x: y",
    "~",
    "- x",
]
_FLOATS = [0.5, -0.0, 1e300, 5e-324, float("inf"), float("-inf"), float("nan"), 3.0]
_leaves = st.one_of(
    numbers, st.sampled_from(_TEXTS), st.none(), st.booleans(), st.sampled_from(_FLOATS), texts(4)
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=8,
)
_sections = st.dictionaries(st.sampled_from(_KEYS), _trees, max_size=4)


def _bomb(levels: int, width: int, kind: str) -> str:
    """A small file that is an immense one when it is written out."""
    if kind == "aliases":
        lines = ["l0: &l0 [x, x]"]
        lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, levels)]
    elif kind == "interpolations":
        lines = ["l0: xx", *(f"l{i}: {f'${{l{i - 1}}}' * width}" for i in range(1, levels))]
    elif kind == "sections":
        lines = ["l0: {x: 1}"]
        lines += [
            f"l{i}: {{{', '.join(f'k{j}: ${{l{i - 1}}}' for j in range(width))}}}" for i in range(1, levels)
        ]
    elif kind == "merges":
        lines = ["l0: &l0 {x: 1}"]
        lines += [f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * width)}]}}" for i in range(1, levels)]
    else:
        return {"lists": "[", "maps": "{a: ", "blocks": "- "}[kind] * levels * 100
    return "\n".join(lines)


_KINDS = ["aliases", "interpolations", "sections", "merges", "lists", "maps", "blocks"]
_bombs = st.builds(
    _bomb, st.sampled_from(range(1, 41)), st.sampled_from(range(1, 10)), st.sampled_from(_KINDS)
)
_SPECIAL = [
    "a: !!python/object/apply:os.system ['touch ../marker']",
    "a: !!python/object/new:subprocess.Popen [[touch, ../marker]]",
    '!!python/object/apply:builtins.eval [\'open("../marker", "w")\']',
    "a: !!python/name:os.system",
    "a: !!python/tuple [1, 2]",
    "a: !!set {x, y}",
    "a: !!binary aGVsbG8=",
    "a: !!timestamp 2020-13-45",
    "a: !unknown x",
    "a: &x [*x]",
    "a: &x {b: *x}",
    "a: *nowhere",
    "a: 1\na: 2",
    "<<: {a: 1}\nb: 2",
    "<<: 3",
    "? [1, 2]\n: 3",
    "? {a: 1}\n: 3",
    "a: ${b}\nb: ${a}",
    "a: ${a}",
    "a: ${oc.decode:'${b}'}\nb: '${a}'",
    "a: {b: '${..a}'}",
    "a: '${oc.create:${a}}'",
    "--- 1\n--- 2",
    "a: 1\n--- \nb: 2",
    "%YAML 9.9\n---\na: 1",
    "a: 0x" + "f" * 5000,
    "a: " + "9" * 5000,
    "a: 1:" * 2000 + "1",
    "1: 2\ntrue: 3\nnull: 4\n1.5: 6",
    "a: .inf\nb: .nan",
    "base: ../config.yaml",
    "base: config.yaml",
    "base: /etc/passwd",
    "base: [x]",
    "base: _base.yaml",
    "base: ${a}",
    "base: null",
    "",
    "- 1",
    "text",
    "\ufeffa: 1",
]
_DEFAULTS = """
experiment: {name: x, output_dir: runs/x}
training: {max_steps: 10}
model: {width: 4}
size: ${model.width}
"""


def _dump(tree: object) -> str:
    return yaml.safe_dump(tree, allow_unicode=True)


_texts = st.one_of(
    st.builds(_dump, _sections),
    st.builds(_dump, _sections),
    st.sampled_from(_SPECIAL),
    _bombs,
    st.just(_DEFAULTS),
)
_bytes = st.builds(lambda text: text.encode("utf-8", "replace"), _texts)
_files = st.one_of(_bytes, _bytes, damaged(_bytes), garbage)
_override_keys = st.one_of(
    st.lists(st.sampled_from(_KEYS), min_size=1, max_size=3).map(".".join),
    st.sampled_from(
        ["a[0]", "a[", "a.[b]", "..", ".", "--a", "-", "a..b", "[0]", "config", "a.0", "{a}", "a.b." * 2000]
    ),
    texts(4),
)
_override_values = st.one_of(
    st.sampled_from(
        [
            *_TEXTS,
            "",
            "[1, 2",
            "{a: 1}",
            "{a: {b: [1]}}",
            "!!python/name:os.system",
            "&x [*x]",
            "=",
            "[" * 3000,
        ]
    ),
    st.builds(_dump, _trees),
    texts(6),
)
_overrides = st.lists(
    st.builds(lambda key, value: f"{key}={value}", _override_keys, _override_values) | texts(6),
    max_size=3,
)


def _case(own: bytes, base: bytes, inherits: bool, overrides: list[str]) -> Case:
    own = b"base: _base.yaml\n" + own if inherits else own
    return Case({"config.yaml": own, "_base.yaml": base}, overrides)


@dataclass(kw_only=True)
class Inner:
    width: int | None = option(4)
    max_steps: int = option(10)
    name: str = option("")
    output_dir: Path | None = option(None)
    a: Any = option(None)
    b: Any = option(None)


@dataclass(kw_only=True)
class Settings:
    """Options that most of these trees fit."""

    model: Inner = option(Inner())
    experiment: Inner = option(Inner())
    training: dict = option({})
    width: float | str = option(1.0)
    max_steps: str | None = option(None)
    size: Any = option(None)
    a: Any = option(None)
    b: Any = option(None)
    l0: Any = option(None)


def _read(folder: Path, overrides: list[str]) -> None:
    load_settings(Settings, [f"config={folder / 'config.yaml'}", *overrides])


READER = Reader(
    "config",
    st.builds(_case, _files, _files, st.booleans(), st.just([]) | _overrides),
    _read,
    named="",  # an argument may be wrong, too
)


def test_recipes_and_arguments():
    check(READER)
