"""`base: other.yaml`: what a recipe inherits, removes and replaces, and what is refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from common.build import ConfigError
from common.config import load_settings, merge_arguments, merge_sources, option, read_yaml
from common.recipes import REMOVED, entries
from storage.files import write_yaml

BASE = """
output: out
model: {width: 4, rates: [1, 2], quantizer: {name: vq, codes: 8, dim: 2}}
size: ${model.width}
clip: null
teacher: {name: small}
"""


@dataclass(kw_only=True)
class Model:
    width: int = option(8)
    rates: list[float] = option([])
    quantizer: dict = option({})
    clip: float | None = option(1.0)


@dataclass(kw_only=True)
class Run:
    output: str = option()
    model: Model = option(Model())
    size: int = option(1)
    clip: float | None = option(1.0)
    teacher: dict | None = option(None)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(name, text)` writes a file into the working directory, in which `_base.yaml` is."""
    monkeypatch.chdir(tmp_path)
    Path("_base.yaml").write_text(BASE)
    return lambda name, text: Path(name).write_text(text)


def test_a_file_without_a_base_is_itself(write):
    assert read_yaml("_base.yaml") == {
        "output": "out",
        "model": {"width": 4, "rates": [1, 2], "quantizer": {"name": "vq", "codes": 8, "dim": 2}},
        "size": 4,
        "clip": None,  # no base: null is a value
        "teacher": {"name": "small"},
    }


def test_sections_are_merged_and_everything_else_is_replaced(write):
    write("own.yaml", "base: _base.yaml\nmodel: {width: 6, rates: [3]}\nteacher: text\n")
    tree = read_yaml("own.yaml")
    assert tree["model"] == {"width": 6, "rates": [3], "quantizer": {"name": "vq", "codes": 8, "dim": 2}}
    assert tree["teacher"] == "text" and tree["clip"] is None and "base" not in tree
    assert tree["size"] == 6, "values that refer to others do so after the merge"


def test_null_removes_keys_and_sections(write):
    write(
        "own.yaml",
        "base: _base.yaml\nmodel: {quantizer: {name: fsq, codes: null, dim: null}}\nteacher: null\n",
    )
    tree = read_yaml("own.yaml")
    assert tree["model"]["quantizer"] == {"name": "fsq"} and "teacher" not in tree


def test_null_is_a_value_where_the_base_has_no_such_key(write):
    write("own.yaml", "base: _base.yaml\nmodel: {clip: null}\n")
    assert read_yaml("own.yaml")["model"]["clip"] is None
    assert load_settings(Run, ["config=own.yaml"]).model.clip is None
    write("own.yaml", "base: _base.yaml\nmodel: {clib: null}\n")
    with pytest.raises(ConfigError, match=r"model\.clib is not an option \(did you mean 'clip'\?\)"):
        load_settings(Run, ["config=own.yaml"])


def test_null_does_not_bring_back_a_default_unseen(write):
    """Whoever writes null against a default that is a number means the value null; the file has to say which."""
    write("own.yaml", "base: _base.yaml\nclip: null\n")
    message = (
        r"own.yaml: clip: null removes .* is 1.0, not null; write clip: 1.0, or clip: \$\{oc.decode:null\}"
    )
    with pytest.raises(ConfigError, match=message):
        load_settings(Run, ["config=own.yaml"])
    assert load_settings(Run, ["config=own.yaml", "clip=2"]).clip == 2
    assert load_settings(Run, ["config=own.yaml", "clip=null"]).clip is None
    write("own.yaml", "base: _base.yaml\nclip: ${oc.decode:null}\nteacher: null\nmodel: {rates: null}\n")
    run = load_settings(Run, ["config=own.yaml"])
    assert (run.clip, run.teacher, run.model.rates) == (None, None, [])


def test_the_strict_check_sees_keys_of_both_files(write):
    write("own.yaml", "base: _base.yaml\nmodel: {widht: 3}\n")
    with pytest.raises(ConfigError, match=r"model\.widht is not an option \(did you mean 'width'\?\)"):
        load_settings(Run, ["config=own.yaml"])
    with pytest.raises(ConfigError, match="base is not an option"):
        load_settings(Run, ["config=_base.yaml", "base=_base.yaml"])


def test_each_of_several_files_has_its_own_base(write):
    write("a.yaml", "base: _base.yaml\nteacher: null\nmodel: {width: 5}\n")
    write("b.yaml", "base: c.yaml\nmodel: {rates: null}\noutput: b\n")
    write("c.yaml", "model: {rates: [9]}\nsize: 3\n")
    tree = merge_arguments(["config=a.yaml", "config=b.yaml", "model.width=7"])
    assert tree["output"] == "b" and tree["size"] == 3 and "teacher" not in tree
    assert tree["model"]["width"] == 7
    assert tree["model"]["rates"] == [1, 2], "what b removes from c stays as a has it"


def test_every_value_has_its_origin(write):
    write("own.yaml", "base: _base.yaml\nmodel: {width: 6, quantizer: {dim: null}}\n")
    found = dict(entries(merge_sources(["config=own.yaml", "model.rates=[1]", "extra.key=1"])))
    assert {key: entry.origin for key, entry in found.items()} == {
        "output": "_base.yaml",
        "model.width": "own.yaml",
        "model.rates": "command line",
        "model.quantizer.name": "_base.yaml",
        "model.quantizer.codes": "_base.yaml",
        "model.quantizer.dim": "own.yaml",
        "size": "_base.yaml",
        "clip": "_base.yaml",
        "teacher.name": "_base.yaml",
        "extra.key": "command line",
    }
    assert found["model.quantizer.dim"].value is REMOVED and found["size"].value == "${model.width}"


def test_a_base_is_found_beside_its_recipe_from_any_directory(write, tmp_path, monkeypatch):
    write("own.yaml", "base: _base.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_yaml(tmp_path / "own.yaml") == read_yaml("../_base.yaml")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("absent.yaml", r"own.yaml: base='absent.yaml' does not exist in "),
        (
            "../_base.yaml",
            r"own.yaml: base='../_base.yaml' must be the name of another file in the same folder",
        ),
        ("folder/x.yaml", r"base='folder/x.yaml' must be the name of another file"),
        ("..", r"base='..' does not exist"),
        ("''", r"base='' does not exist"),
        ("null", r"base=None must be the name"),
        ("[_base.yaml]", r"base=\['_base.yaml'\] must be the name"),
        ("own.yaml", r"own.yaml: base='own.yaml' must be the name of another file"),
        ("chain.yaml", r"own.yaml: base='chain.yaml' has a base itself, '_base.yaml'; only one level"),
        ("circle.yaml", r"own.yaml: base='circle.yaml' has a base itself, 'own.yaml'; only one level"),
        ("list.yaml", "list.yaml must hold keys and values"),
        ("broken.yaml", "broken.yaml cannot be read: .*line 2"),
    ],
)
def test_a_base_that_does_not_fit_is_one_clear_error(write, base, message):
    write("own.yaml", f"base: {base}\nsize: 1\n")
    write("chain.yaml", "base: _base.yaml\n")
    write("circle.yaml", "base: own.yaml\n")
    write("list.yaml", "- 1\n")
    write("broken.yaml", "a: [1\nb: 2\n")
    with pytest.raises(ConfigError, match=message):
        read_yaml("own.yaml")


def test_what_a_run_stores_has_no_base(write):
    write("own.yaml", "base: _base.yaml\nteacher: null\n")
    write_yaml("stored.yaml", merge_arguments(["config=own.yaml"]))
    assert "base" not in Path("stored.yaml").read_text() and read_yaml("stored.yaml") == read_yaml("own.yaml")


class Vq:
    def __init__(self, *, codes: int, dim: int = 2) -> None: ...


class Fsq:
    def __init__(self, *, levels: int = 3, dim: int = 2) -> None: ...


class Asked(dict):
    """Kinds that count how often one of them is looked up, which may import much."""

    times = 0

    def __getitem__(self, name: str) -> type:
        Asked.times += 1
        return super().__getitem__(name)


KINDS = Asked(vq=Vq, fsq=Fsq, wide=type("Wide", (), {"__init__": lambda self, *, quantizer, width=1: None}))


@dataclass(kw_only=True)
class Part:
    section: dict | None = option(None, kinds=KINDS)


@dataclass(kw_only=True)
class Choosing:
    model: dict = option(kinds=KINDS, parts={"quantizer": KINDS})
    inner: Part = option(Part())


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """`choose(texts, *arguments)` loads recipes and a command line; `one.yaml` is the first of the texts."""
    monkeypatch.chdir(tmp_path)

    def load(*texts: str, line: str = "") -> Choosing:
        for name, text in zip(("one", "two", "three"), texts, strict=False):
            Path(f"{name}.yaml").write_text(text)
        files = [f"config={name}.yaml" for name in ("one", "two", "three")[: len(texts)]]
        return load_settings(Choosing, [*files, *line.split()])

    return load


VQ = "model: {name: vq, codes: 8, dim: 4, quantizer: {name: vq, codes: 1}}\n"


def test_another_name_leaves_out_what_only_the_old_kind_takes(choose, capsys):
    run = choose(VQ, line="model.name=fsq model.levels=5")
    assert run.model == {"name": "fsq", "dim": 4, "levels": 5}, "keys that both take stay"
    assert capsys.readouterr() == ("", "note: model: left out keys of vq: codes, quantizer\n")
    run = choose("inner: {section: {name: vq, codes: 8}}\n" + VQ, line="inner.section.name=fsq")
    assert run.inner.section == {"name": "fsq"} and run.model["name"] == "vq"
    assert capsys.readouterr().err == "note: inner.section: left out keys of vq: codes\n"


def test_a_part_is_replaced_by_its_own_name(choose, capsys):
    run = choose(VQ, line="model.quantizer.name=fsq")
    assert run.model == {"name": "vq", "codes": 8, "dim": 4, "quantizer": {"name": "fsq"}}
    assert capsys.readouterr().err == "note: model.quantizer: left out keys of vq: codes\n"
    run = choose(VQ, line="model.name=wide")
    assert run.model == {"name": "wide", "quantizer": {"name": "vq", "codes": 1}}, (
        "a part that both have stays"
    )


def test_what_the_later_source_says_is_never_left_out(choose, capsys):
    """It may be misspelt: the strict check names it."""
    line = "model.codes=9 model.name=fsq model.levls=2 model.quantizer.codes=2"
    assert choose(VQ, line=line).model == {
        "name": "fsq",
        "codes": 9,
        "dim": 4,
        "levls": 2,
        "quantizer": {"name": "vq", "codes": 2},
    }
    assert capsys.readouterr().err == ""
    run = choose("model: {name: vq, codes: 8}\n", line="model.name=vq model.codes=1 model.name=fsq")
    assert run.model == {"name": "fsq", "codes": 1}, "one source, whatever the order"


def test_every_source_after_the_first_may_choose(choose):
    two = "model: {name: fsq, levels: 2}\n"
    assert choose(VQ, two).model == {"name": "fsq", "dim": 4, "levels": 2}
    run = choose(VQ, two, "model: {dim: 7}\n", line="model.codes=3")
    assert run.model == {"name": "fsq", "dim": 7, "levels": 2, "codes": 3}, "3 is after the name"
    run = choose(VQ, two, "model: {name: fsq}\n")
    assert run.model == {"name": "fsq", "dim": 4, "levels": 2}, "the same name again changes nothing"
    run = choose(VQ, two, "model: {name: wide}\n")
    assert run.model == {"name": "wide", "quantizer": {"name": "vq", "codes": 1}}


def test_a_recipe_chooses_over_its_base(write, capsys):
    write("parent.yaml", VQ)
    write("own.yaml", "base: parent.yaml\nmodel: {name: fsq, dim: null}\n")
    assert load_settings(Choosing, ["config=own.yaml"]).model == {"name": "fsq"}
    assert capsys.readouterr().err == "note: model: left out keys of vq: codes, quantizer\n"
    write("other.yaml", "model: {name: wide, width: 2, quantizer: null}\n")
    run = load_settings(Choosing, ["config=own.yaml", "config=other.yaml"])
    assert run.model == {"name": "wide", "width": 2, "quantizer": None}


def test_no_class_is_looked_up_where_no_name_is_changed(choose):
    Asked.times = 0
    choose(VQ, VQ, line="model.codes=3 model.name=vq")
    merge_arguments(["config=one.yaml", "model.name=fsq"])
    assert Asked.times == 0
    with pytest.raises(ConfigError, match=r"model.name='fsk' is unknown \(did you mean 'fsq'\?\)"):
        choose(VQ, line="model.name=fsk")
    assert Asked.times == 0


def test_only_the_first_process_names_what_is_left_out(choose, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert choose(VQ, line="model.name=fsq").model == {"name": "fsq", "dim": 4}
    assert capsys.readouterr().err == ""
