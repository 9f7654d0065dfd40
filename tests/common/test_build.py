import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from common.build import ConfigError, build, build_dataclass, check_options, check_value, nearest, type_name


class Box:
    def __init__(self, *, width: int, height: float = 1.0, lid: bool = False, parts: list[int] | None = None):
        if width < 0:
            raise ValueError(f"width={width} must not be negative")
        self.width, self.height, self.lid, self.parts = width, height, lid, parts


@dataclass(kw_only=True)
class Inner:
    rate: float = 0.1
    name: str

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate={self.rate} must not be negative")


@dataclass(kw_only=True)
class Outer:
    inner: Inner
    steps: int = 3
    names: list[str] = field(default_factory=list)


BUILDERS = {"box": Box, "ball": dict}


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        (1e5, int, 100_000),
        (3, float, 3.0),
        (True, bool, True),
        ("a", str, "a"),
        ("a/b", Path, Path("a/b")),
        (None, int | None, None),
        (2, int | None, 2),
        ("auto", bool | Literal["auto"], "auto"),
        (False, bool | Literal["auto"], False),
        ([1, 2.0], list[int], [1, 2]),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ((1, 2), Sequence[int], [1, 2]),
        ({"a": 1}, dict, {"a": 1}),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        (["cat", 3], list[int | str] | int | str, ["cat", 3]),
        ({"name": "x"}, Inner, Inner(name="x")),
        (Inner(name="y"), Inner, Inner(name="y")),
        (object, Any, object),
    ],
)
def test_values_that_lose_nothing_are_converted(value, annotation, expected):
    result = check_value("key", value, annotation)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("3", int, "key='3' has the wrong type; expected int"),
        (2.5, int, "key=2.5 has the wrong type; expected int"),
        (True, int, "key=True has the wrong type; expected int"),
        (True, float, "key=True has the wrong type; expected float"),
        ("1e-4x", float, "key='1e-4x' has the wrong type; expected float"),
        (1, bool, "key=1 has the wrong type; expected bool"),
        (7, str, "key=7 has the wrong type; expected str"),
        (None, int, "key=None has the wrong type; expected int"),
        (3, Path, "key=3 has the wrong type; expected Path"),
        ("12", list[int], "key='12' has the wrong type; expected list of int"),
        ([1, "b"], list[int], r"key\[1\]='b' has the wrong type; expected int"),
        ([1], dict, r"key=\[1\] has the wrong type; expected section"),
        (5, Inner, "key=5 has the wrong type; expected section"),
        ("cosin", Literal["cosine", "constant"], r"one of cosine, constant \(did you mean 'cosine'\?\)"),
        ([], Literal["a"], r"key=\[\] is not allowed"),
        ("sometimes", bool | Literal["auto"], "expected bool or one of auto"),
        ({}, int | str | None, r"key=\{\} has the wrong type; expected int or str or null"),
        ({"rat": 1}, Inner, r"key\.rat is not an option \(did you mean 'rate'\?\)"),
        ({"rat": 1}, Inner | None, r"key\.rat is not an option \(did you mean 'rate'\?\)"),
        ({"rate": 1}, Inner, r"key\.name is missing; expected str"),
        ({"name": "a", "rate": -1}, Inner, r"key: rate=-1.0 must not be negative"),
    ],
)
def test_everything_else_names_key_value_and_expectation(value, annotation, message):
    with pytest.raises(ConfigError, match=message):
        check_value("key", value, annotation)


def test_build_makes_the_named_object():
    box = build("box", BUILDERS, {"name": "box", "width": 3, "parts": [1]}, lid=True)
    assert (box.width, box.height, box.lid, box.parts) == (3, 1.0, True, [1])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"width": 3}, "model.name is missing; choose one of ball, box"),
        ({"name": "bax", "width": 3}, r"model.name='bax' is unknown \(did you mean 'box'\?\); choose one of"),
        (
            {"name": "box", "widht": 3},
            r"model.widht is not an option \(did you mean 'width'\?\); options: hei",
        ),
        ({"name": "box"}, "model.width is missing; expected int"),
        ({"name": "box", "width": "3"}, "model.width='3' has the wrong type; expected int"),
        ({"name": "box", "width": -1}, "model: width=-1 must not be negative"),
        ({"name": "box", "width": 1, "lid": True}, "model.lid is not an option"),  # the program's own
        ({"name": "box", "width": 1, 2: 3}, "model.2 is not an option"),
    ],
)
def test_build_says_what_is_wrong(section, message):
    with pytest.raises(ConfigError, match=message):
        build("model", BUILDERS, section, lid=False)


def test_the_section_is_left_as_it_was():
    section = {"name": "box", "width": 3}
    build("box", BUILDERS, section)
    assert section == {"name": "box", "width": 3}


def test_check_options_reads_functions_too():
    def function(*, size: int, kind: Literal["a", "b"] = "a") -> None: ...

    assert check_options("f", function, {"size": 2.0}) == {"size": 2}
    with pytest.raises(ConfigError, match="f.kind='c' is not allowed; expected one of a, b"):
        check_options("f", function, {"size": 2, "kind": "c"})


def test_dataclasses_are_built_from_nested_sections():
    outer = build_dataclass(Outer, {"inner": {"name": "a", "rate": 1}, "steps": 1e2})
    assert outer == Outer(inner=Inner(name="a", rate=1.0), steps=100, names=[])
    assert dataclasses.replace(outer).names is outer.names is not Outer(inner=outer.inner).names
    with pytest.raises(ConfigError, match=r"^inner is missing; expected section"):
        build_dataclass(Outer, {})
    with pytest.raises(ConfigError, match=r"^inner\.nam is not an option \(did you mean 'name'\?\)"):
        build_dataclass(Outer, {"inner": {"nam": "a"}})
    with pytest.raises(ConfigError, match=r"^inner: rate=-1"):
        build_dataclass(Outer, {"inner": {"name": "a", "rate": -1}})


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("codebok_size", ["codebook_size", "code_dim"]) == " (did you mean 'codebook_size'?)"
    assert nearest("zzz", ["codebook_size"]) == "" and nearest("a", []) == ""


def test_types_are_named_for_people():
    names = {int | None: "int or null", list[str]: "list of str", Inner: "section", dict: "section"}
    names |= {Literal["a", "b"] | float: "one of a, b or float", dict[str, int]: "section", Path: "Path"}
    assert {type_name(a): n for a, n in names.items()} == {n: n for n in names.values()}
