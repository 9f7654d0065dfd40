import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from common import config
from common.build import ConfigError
from common.config import (
    describe,
    first_difference,
    load_settings,
    merge_arguments,
    option,
    read_yaml,
    run_script,
    to_tree,
)
from storage.files import write_yaml


@dataclass(kw_only=True)
class Model:
    width: int = option(8, "channels")
    rates: list[float] = option([0.1, 0.2])
    extra: dict = option({})


@dataclass(kw_only=True)
class Run:
    output: Path = option(help="where to write")
    model: Model = option(Model())
    note: str | None = option(None, "free text")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.yaml").write_text("output: out\nmodel:\n  width: 4\n  rates: [1]\n  extra: {k: 1, l: 2}\n")
    (tmp_path / "b.yaml").write_text("model: {width: 5}\nnote: ${output}/x${model.width}\n")
    return tmp_path


def test_later_arguments_win_and_sections_are_merged(files):
    tree = merge_arguments(
        [f"config={files}/a.yaml", "model.width=7", f"config={files}/b.yaml", "--model.extra.l=[a, b]"]
    )
    # Overrides stand above files wherever they are written.
    assert tree["model"] == {"width": 7, "rates": [1], "extra": {"k": 1, "l": ["a", "b"]}}


def test_a_list_and_a_section_replace_each_other(files):
    tree = merge_arguments([f"config={files}/a.yaml", "model.rates={a: 1}", "model.extra=[2]", "note=null"])
    assert tree["model"] == {"width": 4, "rates": {"a": 1}, "extra": [2]} and tree["note"] is None
    with pytest.raises(ConfigError, match=r"model\.extra=\[2\] has the wrong type; expected section"):
        load_settings(Run, [f"config={files}/a.yaml", "model.extra=[2]"])


def test_values_that_refer_to_others_follow_overrides(files):
    arguments = [f"config={files}/a.yaml", f"config={files}/b.yaml", "output=other"]
    run = load_settings(Run, arguments)
    assert run.note == "other/x5" and run.output == Path("other")


def test_values_are_typed_as_yaml_types_them():
    tree = merge_arguments(["a=1", "b=1.5", "c=true", "d=null", "e=text", "f={x: 1}", "g=a=b", "h=1e-4"])
    assert tree == {"a": 1, "b": 1.5, "c": True, "d": None, "e": "text", "f": {"x": 1}, "g": "a=b", "h": 1e-4}


@dataclass
class Inner:
    name: str = option("x")


@dataclass
class Texts:
    input: str = option("a")
    output: Path = option(Path("o"))
    model: str | dict | None = option(None)
    inner: Inner = option(Inner())
    count: int | None = option(None)
    data: dict = option({})


@pytest.mark.parametrize("text", ["007", "20240511", "1e3", "no", "12:30", "a: b", "null", "1_0", "a:b", "~"])
def test_options_that_are_text_mean_what_is_written(text):
    assert load_settings(Texts, [f"input={text}"]).input == text
    assert load_settings(Texts, [f"output={text}"]).output == Path(text)
    assert load_settings(Texts, [f"inner.name={text}"]).inner.name == text
    if text not in ("null", "~"):
        assert load_settings(Texts, [f"model={text}"]).model == text


def test_other_options_are_typed_and_the_last_word_counts():
    assert load_settings(Texts, ["input=007", "input=b"]).input == "b"
    assert load_settings(Texts, ["model=null"]).model is None
    assert load_settings(Texts, ["model={a: 1}"]).model == {"a": 1}
    found = load_settings(Texts, ["count=1e1", "data.x=no", "data={y: [7]}"])
    assert (found.count, found.data) == (10, {"x": False, "y": [7]})
    with pytest.raises(ConfigError, match="as text, write 'input="):
        load_settings(Texts, ["input=[a]"])
    with pytest.raises(
        ConfigError, match="count='a: b' has the wrong type; expected int or null|expected int"
    ):
        load_settings(Texts, ["count=a: b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output"], "argument 'output' is not understood; write key=value, or --help"),
        (["=3"], "argument '=3' is not understood"),
        (["a={b"], "arguments cannot be merged: "),
        (["a=${nowhere}"], "arguments cannot be merged: .*nowhere"),
        (["config=no/such.yaml"], "config file no/such.yaml does not exist"),
        (["config={folder}"], "config file .* cannot be read: .*directory"),
        (["config={folder}/list.yaml"], "must hold keys and values"),
        (["config={folder}/text.yaml"], "text.yaml cannot be read"),
        (["config={folder}/broken.yaml"], "broken.yaml cannot be read: .*line 2"),
        (["config={folder}/binary.yaml"], "binary.yaml cannot be read"),
        (["output=x", "model.widht=3"], r"model\.widht is not an option \(did you mean 'width'\?\)"),
        (["output=x", "model.width=wide"], "model.width='wide' has the wrong type; expected int"),
        (["output=x", "model=3"], "model=3 has the wrong type; expected section"),
        (["model.width=3"], "output is missing; expected Path"),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path, arguments, message):
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "text.yaml").write_text("3")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2\n")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        load_settings(Run, [a.replace("{folder}", str(tmp_path)) for a in arguments])


def test_an_empty_file_is_an_empty_section(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_files_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.find_file("configs/debug/titok.yaml").is_file()
    (tmp_path / "configs").mkdir()
    assert config.find_file("configs") == Path("configs")  # the user's own comes first


def test_what_is_written_reads_back_the_same(tmp_path):
    run = load_settings(Run, ["output=a/b", "model.rates=[3]", "model.extra={a: {b: null}}"])
    write_yaml(tmp_path / "c.yaml", to_tree(run))
    again = load_settings(Run, [f"config={tmp_path}/c.yaml"])
    assert again == run and read_yaml(tmp_path / "c.yaml")["model"]["width"] == 8


def test_mutable_defaults_are_not_shared():
    one, two = Run(output=Path("a")), Run(output=Path("b"))
    one.model.rates.append(3.0)
    one.model.extra["a"] = 1
    assert two.model.rates == [0.1, 0.2] and two.model.extra == {}


def test_first_difference():
    old = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert first_difference(old, {"b": {"d": None, "c": [1, 2]}, "a": 1}, "x") is None
    assert first_difference(old, {"a": 1, "b": {"c": [1], "d": None}}, "x") == "x.b.c was [1, 2], is now [1]"
    assert first_difference(old, {"a": 1, "b": old["b"], "e": 5}, "x") == "x.e was None, is now 5"
    assert first_difference(None, {"a": 1}, "x") == "x was None, is now {'a': 1}"


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    return run_script(main, Run, "Does a thing.\n\n    python script.py\n")


@dataclass(kw_only=True)
class Translated(Run):
    """Takes `size`, in the terms of another program, for `model.width`."""

    @classmethod
    def translate(cls, tree):
        kept = {key: value for key, value in tree.items() if key != "size"}
        if tree.get("size") == "refused":
            raise ConfigError("size is\nwrong")
        return kept | {"model": {"width": tree["size"]}} if "size" in tree else kept


def test_the_tree_is_translated_after_merging_and_before_the_check(files):
    (files / "foreign.yaml").write_text("output: out\nsize: 3\n")
    settings = load_settings(Translated, [f"config={files}/foreign.yaml", "size=6", "note=x"])
    assert settings == Translated(output=Path("out"), model=Model(width=6), note="x")
    with pytest.raises(ConfigError, match="size is not an option"):
        load_settings(Run, [f"config={files}/foreign.yaml"])
    with pytest.raises(ConfigError, match="model.width='big' has the wrong type"):
        load_settings(Translated, [f"config={files}/foreign.yaml", "size=big"])


def test_scripts_translate(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "argv", ["script.py", "output=x", "size=5"])
    run_script(seen.append, Translated, "Usage.")
    assert seen == [Translated(output=Path("x"), model=Model(width=5))]
    monkeypatch.setattr(sys, "argv", ["script.py", "output=x", "size=refused"])
    with pytest.raises(SystemExit) as end:
        run_script(lambda *_: pytest.fail("started"), Translated, "Usage.")
    assert end.value.code == "error: size is wrong"
    monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
    run_script(lambda *_: pytest.fail("started"), Translated, "Usage.")
    assert "model.width=" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_shows_every_option(monkeypatch, capsys, word):
    run(monkeypatch, lambda *_: pytest.fail("started"), "output=x", word)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Does a thing."
    assert any(line.split() == ["output=", "Path", "[required]", "where", "to", "write"] for line in lines)
    assert any(line.split() == ["model.width=", "int", "[8]", "channels"] for line in lines)
    assert any(line.split()[:4] == ["note=", "str", "or", "null"] for line in lines)


def test_help_shows_the_values_of_a_section_that_is_given():
    @dataclass(kw_only=True)
    class Other:
        model: Model = option(Model(width=9))
        needed: Model = option()

    lines = [line.split()[:3] for line in describe(Other)]
    assert ["model.width=", "int", "[9]"] in lines and ["needed.width=", "int", "[8]"] in lines


def test_main_gets_the_settings(monkeypatch):
    seen = []
    run(monkeypatch, lambda *arguments: seen.extend(arguments), "output=x", "model.width=3")
    assert seen == [Run(output=Path("x"), model=Model(width=3))]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("two\n  lines"), "error: two lines"),
        (FileNotFoundError(2, "No such file", "a.txt"), "error: [Errno 2] No such file: 'a.txt'"),
        (
            ValueError(
                "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                '  File "a.py", line 1, in b\n    raise X\nKeyError: 1\n\nDuring handling: x\n\n'
                "common.build.ConfigError: data: 7 is wrong\n"
            ),
            "error: data: 7 is wrong",
        ),
    ],
)
def test_mistakes_in_the_input_are_one_line(monkeypatch, error, shown):
    def main(settings):
        raise error

    monkeypatch.delenv("TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, main, "output=x")
    assert end.value.code == shown


def test_bugs_and_wishes_show_the_traceback(monkeypatch):
    def main(settings):
        raise KeyError("a bug") if settings.note else ValueError("seen")

    with pytest.raises(KeyError, match="a bug"):
        run(monkeypatch, main, "output=x", "note=x")
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError, match="seen"):
        run(monkeypatch, main, "output=x")


def test_a_difference_is_one_line_whatever_the_keys_of_a_file():
    assert first_difference({"a": {"\n": "x\ny"}}, {"a": {}}, "run") == r"run.a.\n was x\ny, is now None"


def test_a_file_of_one_quoted_number_is_no_configuration(tmp_path):
    (tmp_path / "one.yaml").write_text("'1'")
    with pytest.raises(ConfigError, match=r"one.yaml must hold keys and values, found one value"):
        read_yaml(tmp_path / "one.yaml")
