"""scripts/show_config.py prints every option of a run with its origin."""

import sys

import pytest
import yaml

from common.config import REPOSITORY, load_settings, read_yaml, to_tree
from scripts import show_config
from training.generator_settings import GeneratorRun


@pytest.fixture
def show(monkeypatch, capsys):
    """`show(*arguments)` runs the program and returns what it prints."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["show_config.py", *arguments])
        show_config.main()
        return capsys.readouterr().out

    return call


def origins(text: str) -> dict[str, str]:
    """{stripped `key: value`: origin} of the printed lines."""
    return {
        line.split("  # ")[0].strip(): line.split("  # ")[1] for line in text.splitlines() if "  # " in line
    }


def test_a_recipe_from_any_directory(show, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["config=configs/rar/imagenet_xl.yaml", "training.max_steps=187500", "generator.dropout=0.2"]
    text = show(*arguments)
    assert yaml.safe_load(text) == to_tree(load_settings(GeneratorRun, arguments))
    found = origins(text)
    assert found["max_steps: 187500"] == found["dropout: 0.2"] == "command line"
    assert found["name: rar-xl"] == "configs/rar/imagenet_xl.yaml"
    assert found["seed: 42"] == found["epsilon: 1.0e-08"] == "default"
    (tmp_path / "again.yaml").write_text(text)
    assert yaml.safe_load(show("config=again.yaml")) == yaml.safe_load(text)


def test_what_a_base_gives_and_what_is_removed(show, tmp_path):
    tree = "tokenizer: {name: titok}\ntraining: {max_steps: 3}\nlosses: {kl_weight: 2.0}\n"
    (tmp_path / "_base.yaml").write_text(tree)
    data = "data: {train: {size: '${tokenizer.size}'}, validation: {}}"
    own = f"base: _base.yaml\nexperiment: {{output_dir: x}}\ntokenizer: {{size: 8}}\nlosses: null\n{data}\n"
    (tmp_path / "own.yaml").write_text(own.replace("losses: null", "losses: {kl_weight: null}"))
    found = origins(show(f"config={tmp_path}/own.yaml"))
    assert (
        found["max_steps: 3"] == f"{tmp_path}/_base.yaml" and found["output_dir: x"] == f"{tmp_path}/own.yaml"
    )
    assert found["size: 8"] in (f"{tmp_path}/own.yaml", f"{tmp_path}/own.yaml: ${{tokenizer.size}}")
    assert found["kl_weight: 1.0e-06"] == f"default; {tmp_path}/own.yaml removes the value of its base"
    assert found["validation: {}"] == "default"


def test_what_the_program_refuses_is_refused(show, tmp_path):
    own = "base: imagenet_b.yaml\ntraining: {max_grad_norm: null}\n"
    (tmp_path / "imagenet_b.yaml").write_text((REPOSITORY / "configs/rar/imagenet_b.yaml").read_text())
    (tmp_path / "own.yaml").write_text(own)
    with pytest.raises(SystemExit) as end:
        show(f"config={tmp_path}/own.yaml")
    assert "training.max_grad_norm: null removes the key of the base, and the default is 1.0" in str(
        end.value.code
    )


def test_codebooks_and_files_of_other_programs(show, tmp_path):
    text = show("config=configs/debug/cluster.yaml", "images=7")
    assert yaml.safe_load(text).items() >= (read_yaml("configs/debug/cluster.yaml") | {"images": 7}).items()
    assert origins(text)["images: 7"] == "command line" and origins(text)["metric: cosine"] == "default"
    (tmp_path / "other.yaml").write_text("model: {size: 3}\n")
    assert origins(show(f"config={tmp_path}/other.yaml")) == {"size: 3": f"{tmp_path}/other.yaml"}


def test_help_and_mistakes(show):
    assert "python scripts/show_config.py config=" in show("--help") == show()
    with pytest.raises(SystemExit) as end:
        show("config=configs/debug/rar.yaml", "training.max_step=3")
    assert str(end.value.code).startswith(
        "error: training.max_step is not an option (did you mean 'max_steps'?)"
    )


def test_another_data_set_replaces_the_section(show, capsys):
    """The result is what the program would take: a YAML file that can be used again."""
    arguments = ["config=configs/titok/openmoji.yaml", "data.train.name=image_folder", "data.train.path=mine"]
    text = show(*arguments)
    tree, found = yaml.safe_load(text), origins(text)
    assert tree["data"]["train"] == {
        "name": "image_folder",
        "image_size": 48,
        "random_flip": True,
        "path": "mine",
    }
    assert tree["data"]["validation"]["name"] == "openmoji"
    assert found["name: image_folder"] == found["path: mine"] == "command line"
    assert found["random_flip: true"] == "configs/titok/openmoji.yaml"
