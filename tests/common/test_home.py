import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from common import config
from common.build import takes_text
from common.config import REPOSITORY, find_file, load_settings, read_yaml
from common.home import at_home
from evaluator.inception_weights import find_inception_weights
from storage.files import user_cache_folder

PROGRAMS = [
    *REPOSITORY.glob("scripts/*.py"),
    *REPOSITORY.glob("train_*.py"),
    REPOSITORY / "sample_imagenet.py",
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def settings_classes() -> set[type]:
    """The options of all programs."""
    found = set()
    for path in PROGRAMS:
        spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
        module, before = importlib.util.module_from_spec(spec), list(sys.path)
        spec.loader.exec_module(module)
        sys.path[:] = before
        found |= {v for v in vars(module).values() if isinstance(v, type) and dataclasses.is_dataclass(v)}
    return found


def texts(annotation: Any, key: str) -> list[str]:
    """Arguments that give an option a path, in every way that it takes one."""
    choices = [c for c in (*get_args(annotation), annotation) if c is not type(None)]
    if dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation)
        return [a for f in dataclasses.fields(annotation) for a in texts(hints[f.name], f"{key}.{f.name}")]
    given = [f"{key}=~/a b.x"] if takes_text(annotation) else []
    if any(get_origin(c) in (list, tuple) for c in choices):
        given.append(f"{key}=[other,~/a b.x]")
    if dict in choices:
        given += [f"{key}.path=~/a b.x", f"{key}.deeper={{paths: [~/a b.x]}}"]
    return given


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list) else [tree]


def test_every_option_of_every_program_that_may_be_a_path(home, monkeypatch):
    monkeypatch.setattr(config, "build_dataclass", lambda cls, tree: tree)
    classes, seen = settings_classes(), set()
    assert len(classes) >= 14
    for cls in classes:
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            for argument in texts(hints[field.name], field.name):
                found = leaves(load_settings(cls, [argument]))
                assert f"{home}/a b.x" in found and not any("~" in str(leaf) for leaf in found), argument
                seen.add(argument.partition("=")[0])
    assert {
        "output",
        "make_ref",
        "experiment.output_dir",
        "data.train.path",
        "lpips_weights",
        "tokenizer",
    } <= seen


def test_in_yaml_and_by_reference(home):
    (home / "recipe.yaml").write_text(
        "experiment: {output_dir: ~/x, name: run}\nlog: ${experiment.output_dir}/log"
    )
    tree = read_yaml("~/recipe.yaml")
    assert tree == {
        "experiment": {"output_dir": f"{home}/x", "name": "run"},
        "log": f"{home}/x/log",
    }
    assert config.merge_arguments(["config=~/recipe.yaml", "more=${log}/y"])["more"] == f"{home}/x/log/y"


def test_only_the_own_home(home):
    for text in ("~root/x", "a/~/x", "s3://~/x", "hf://a/~", "$HOME/x", "~~", "~", "", "a ~/x"):
        assert at_home(text) == text
    assert at_home(["~/", {"a": "~/b"}, 3, None]) == [f"{home}/", {"a": f"{home}/b"}, 3, None]


def test_names_of_files_and_variables(home, monkeypatch):
    (home / "x").touch()
    assert find_file("~/x") == home / "x" == find_file(Path("~/x"))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert user_cache_folder() == home / "cache/titok"
    monkeypatch.setenv("INCEPTION_WEIGHTS", "~/x")
    assert find_inception_weights() == home / "x"


def test_a_home_that_nobody_knows_is_named(monkeypatch):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ValueError, match="~/x: the home folder is not known; set HOME"):
        at_home("~/x")
