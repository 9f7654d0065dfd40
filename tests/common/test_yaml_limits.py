"""Small YAML texts that name immense trees are refused before anything is built."""

import re

import pytest
import yaml

from common.build import ConfigError
from common.config import REPOSITORY, merge_arguments, read_yaml
from common.console import one_line
from common.yaml_limits import DEEPEST, check_interpolations, check_text


def bomb(line: str, levels: int = 30) -> str:
    return "\n".join(["l0: &l0 {x: 1}", *(line.format(i=i, j=i - 1) for i in range(1, levels))])


@pytest.mark.parametrize(
    "text, expected",
    [
        (bomb("l{i}: &l{i} [*l{j}, *l{j}, *l{j}]"), "more than 200000 keys and values, counting aliases"),
        (bomb("l{i}: &l{i} {{<<: [*l{j}, *l{j}, *l{j}]}}"), "counting aliases"),
        (bomb("l{i}: '${{l{j}}}${{l{j}}}'"), "counting interpolations"),
        (bomb("l{i}: {{x: '${{l{j}}}', y: '${{.x}}', z: '${{l{j}}}'}}"), "counting interpolations"),
        (bomb("l{i}: '${{oc.select:l{j}}}${{oc.select:l{j}}}'"), "counting interpolations"),
        (bomb("l{i}: '${{l{j}}}'", 200), f"more than {DEEPEST} levels, counting interpolations"),
        (bomb("l{i}: &l{i} {{x: *l{j}}}", 200), f"more than {DEEPEST} levels, counting aliases"),
        (bomb("l{i}: '${{${{n}}}}${{${{n}}}}'"), "interpolations inside of interpolations"),
        ("a: " + "[" * 5000, "levels"),
        ("- " * 5000, "levels"),
        ("a: ['${oc.select:a}']", "maximum recursion depth"),
        ("a: &x [*x]", r"\*x stands inside of what it repeats"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: !!timestamp 2020-13-45", "'2020-13-45' in line 1 is no timestamp"),
        ("a: 1\nb: !!timestamp soon", "'soon' in line 2 is no timestamp"),
        ("a: !!bool maybe", "'maybe' in line 1 is no bool"),
        ("? !!int ''\n: 1", "'' in line 1 is no int"),
        ("a: !!float '_'", "'_' in line 1 is no float"),
        ("? [1, 2]\n: 3", "cannot be read"),
        ("a: !!python/object/apply:os.system ['touch marker']", "cannot be read"),
    ],
)
def test_texts_that_are_refused(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    for read in (lambda: read_yaml(path), lambda: merge_arguments([f"config={path}"])):
        with pytest.raises(ConfigError, match=expected):
            read()
    with pytest.raises(ConfigError, match=f"config file {re.escape(str(path))} cannot be read"):
        read_yaml(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "argument", [".".join("a" * 500) + "=1", "a=" + "[" * 500, "a=&x [*x]", "a[0]=${oc.select:a}"]
)
def test_arguments_that_are_refused(argument):
    with pytest.raises(ConfigError, match="arguments cannot be merged"):
        merge_arguments([argument])


@pytest.mark.parametrize("argument", ["[=1", "a[=1", "a..b=1", ".=1", "a.=1", "a[]=1", "--=1", "=1", "a"])
def test_keys_that_are_none(argument):
    with pytest.raises(ConfigError, match="argument .* is not understood; write key=value"):
        merge_arguments([argument])


def test_what_people_write_passes():
    check_text("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x}\nnames: [" + ", ".join(["word"] * 21_000) + "]")
    check_interpolations(
        {"a": "${b.c}", "b": {"c": "${.d}", "d": ["${..c}", "${nowhere}", "${oc.env:X,${a}}"]}}
    )
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        check_text(path.read_text())
        check_interpolations(yaml.safe_load(path.read_text()) or {})


def test_a_message_does_not_repeat_a_long_file():
    with pytest.raises(ConfigError) as caught:
        merge_arguments(["a=[" + "x" * 100_000])
    assert len(one_line(caught.value)) < 4000 and len(one_line(ValueError("x\ny" * 5000))) < 4000
