"""Every recipe's small twin under configs/debug trains, resumes, and learns within thirty steps."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

import train_rar
import train_titok
from common.config import REPOSITORY, read_yaml
from jobs.fit_codebook import fit_codebook
from jobs.options.fit_codebook import FitOptions
from modeling.pretrained.teachers import build_teacher
from tests.parity import fill_module
from tests.recipes import RECIPES, name_of
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun

FIT = "cluster"  # no training: codes are fitted, and pixels learned afterwards
TWINS = [p.stem for p in RECIPES if p.parent.name == "debug" and p.stem != FIT]
# Recipes that are too large for a test, and others that name a twin.
LARGE = [
    p
    for p in RECIPES
    if p.parent.name != "debug" and ("imagenet" in str(read_yaml(p)) or "# Debug twin:" in p.read_text())
]


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the twins' teacher as the hub has them, but random."""
    pytest.importorskip("timm")
    path = tmp_path_factory.mktemp("teacher") / "test_vit.safetensors"
    teacher = build_teacher(name="test_vit.r160_in1k", project=True)
    save_file(fill_module(teacher.network).state_dict(), path)
    return path


@pytest.fixture
def train(
    tmp_path: Path, program: Callable, tiny_token_file: Path, request: pytest.FixtureRequest
) -> Callable:
    """`train(twin, folder, *options)` runs a twin into `tmp_path / folder`; what it starts from is trained first."""

    def call(name: str, folder: str, *options: str, expected: tuple[int, ...] = (0,)) -> Path:
        tree, output = read_yaml(REPOSITORY / "configs" / "debug" / f"{name}.yaml"), tmp_path / folder
        weights = []
        if isinstance(tree.get("teacher"), dict):
            weights = [f"teacher.weights={request.getfixturevalue('teacher_weights')}"]
        if name == FIT:
            arguments = [f"config=configs/debug/{FIT}.yaml", f"output={output}", *weights]
            done = program(fit_codebook, FitOptions, *arguments)
            assert done.code == 0, done.err
            return output
        arguments = [
            f"config=configs/debug/{name}.yaml",
            f"experiment.output_dir={output}",
            *options,
            *weights,
        ]
        for key in ("teacher", "initialize"):
            if isinstance(tree.get(key), str):
                needed = Path(tree[key]).name
                if not (tmp_path / needed).exists():
                    call(needed, needed, "training.max_steps=2", "schedule.warmup_steps=1")
                arguments.append(f"{key}={tmp_path / needed}")
        if "text_encoder" in tree:
            arguments.append(f"text_encoder={request.getfixturevalue('tiny_text_tower')}")
        if "generator" in tree:
            arguments.append(f"data.tokens={tiny_token_file}")
            done = program(train_rar, GeneratorRun, *arguments)
        else:
            done = program(train_titok, TokenizerRun, *arguments)
        assert done.code in expected, done.err
        return output

    return call


@pytest.mark.parametrize("name", TWINS)
def test_trains_and_resumes(name, train):
    """Three steps; then, with the third taken away, the third again: the same weights, bit for bit."""
    options = ["training.max_steps=3", "schedule.warmup_steps=1", "training.log_every=1"]
    options += ["training.save_every=1", "training.keep_checkpoints=3"]
    if "discriminator" in read_yaml(REPOSITORY / "configs" / "debug" / f"{name}.yaml"):
        options.append("losses.discriminator_start=1")
    folder = train(name, "run", *options)
    losses = [r["total_loss"] for r in records(folder)]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    weights = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints" / "step-00000003")
    (folder / "model.safetensors").unlink()
    train(name, "run", *options)
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_loss_falls_over_thirty_steps(name, train):
    # A post-norm transformer this narrow wants large steps.
    rate = "3e-2" if name == "maskgit" else "3e-3"
    options = ["training.log_every=1", f"optimizer.learning_rate={rate}"]
    tree = read_yaml(REPOSITORY / f"configs/debug/{name}.yaml")
    term = "total_loss" if "generator" in tree else "reconstruction_loss"
    term = "feature_loss" if isinstance(tree.get("teacher"), dict) else term
    values = [r[term] for r in records(train(name, "run", *options))]
    start, end = sum(values[:5]) / 5, sum(values[-5:]) / 5
    assert len(values) == 30 and end < 0.97 * start, f"{start} -> {end}"


@pytest.mark.parametrize("path", LARGE, ids=name_of)
def test_every_recipe_names_a_twin_of_its_kind(path):
    found = re.search(r"^# Debug twin: (\S+)$", path.read_text(), re.MULTILINE)
    assert found, f"{path} names no twin"
    recipe, twin = read_yaml(path), read_yaml(REPOSITORY / found[1])
    for section in ("tokenizer", "generator"):
        assert (section in recipe) == (section in twin)
        if section in recipe:
            for key in ("name", "layout"):
                assert recipe[section].get(key) == twin[section].get(key)
            names = [tree[section].get("quantizer", {}).get("name") for tree in (recipe, twin)]
            assert names[0] == names[1]
    assert ("discriminator" in recipe) == ("discriminator" in twin)
    assert ("teacher" in recipe) == ("teacher" in twin)


def test_there_are_recipes():
    kinds = {
        "titok",
        "titok_vae",
        "titok_stage1",
        "titok_stage2",
        "magvit2",
        "ibq",
        "factorized_ar",
        "ibq_ar",
    }
    assert len(LARGE) >= 70 and kinds <= set(TWINS)


def records(folder: Path) -> list[dict]:
    """Training records of a run's log."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == "train"]
