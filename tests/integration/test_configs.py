"""Every shipped configuration passes the strict checks and describes models, optimizers and schedules that build."""

import json
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.build import ConfigError, build_dataclass, check_options, choose
from common.config import read_yaml
from data import DATASETS
from data.loaders import train_loader
from data.still import still_source
from data.token_memmap import TokenHeader, TokenMemmap, TokenWriter
from jobs.options.fit_codebook import FitOptions
from modeling.factory import build_discriminator, build_generator, build_tokenizer
from modeling.generators.base import AutoregressiveGenerator, Generator
from modeling.layers.trainable import Trainable
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.teachers import build_teacher, load_teacher
from modeling.sampling.draw import settings_type
from modeling.tokenizers.base import Tokenizer
from tests.recipes import BASES, GOLDEN, RECIPES, digests, name_of
from training.generator_settings import GeneratorRun
from training.optim import build_optimizer, parameter_groups
from training.plan_checks import short_generator_run, short_tokenizer_run
from training.run_lengths import in_steps
from training.schedules import learning_rate
from training.settings import OptimizerSettings, ScheduleSettings
from training.tasks import TOKENIZER_TASKS
from training.tokenizer_run import build_images
from training.tokenizer_settings import TokenizerRun

# What a generator's run takes from its tokens where its section leaves it out.
SIZES = {"codebook_size": 64, "num_tokens": 16, "num_classes": 10}


def kind_of(tree: dict[str, Any]) -> str:
    """Which entry point a file is for."""
    kinds = [kind for kind in ("tokenizer", "generator") if kind in tree]
    if not kinds and "codebook_size" in tree:
        return "codebook"
    assert len(kinds) == 1, f"sections {list(tree)} belong to no entry point"
    return kinds[0]


def files(kind: str) -> Any:
    found = [path for path in RECIPES if kind_of(read_yaml(path)) == kind]
    return pytest.mark.parametrize("path", found, ids=name_of)


def whole(run: Any) -> Any:
    """The run with its shares as steps."""
    return in_steps(run, run.training.max_steps)


def assert_trainable(module: Trainable, optimizer: OptimizerSettings) -> None:
    """Every trainable parameter is in exactly one group, and the optimizer takes the settings."""
    grouped = [p for group in parameter_groups(module, optimizer) for p in group["params"]]
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in trainable} and len(grouped) == len(trainable)
    build_optimizer(module, optimizer)


def assert_learns(run: TokenizerRun | GeneratorRun, optimizer: OptimizerSettings, start: int = 0) -> None:
    """The learning rate rises to its peak, and ends where it should."""
    schedule: ScheduleSettings = run.schedule
    total = run.training.max_steps - start
    assert 0 <= schedule.warmup_steps < total and 0 <= schedule.end_lr < run.optimizer.learning_rate
    rates = [
        learning_rate(
            step,
            peak=optimizer.learning_rate,
            base=run.optimizer.learning_rate,
            settings=schedule,
            total=total,
        )
        for step in (schedule.warmup_steps, total - 1, total)
    ]
    assert rates[0] == pytest.approx(optimizer.learning_rate) and all(rate > 0 for rate in rates[:2])
    if schedule.name == "cosine":
        expected = schedule.end_lr * optimizer.learning_rate / run.optimizer.learning_rate
        assert rates[2] == pytest.approx(expected)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A shard of three pictures with class, caption and original size, in the place of a large data set."""
    path = tmp_path_factory.mktemp("shards") / "train-0000.tar"
    picture = BytesIO()
    Image.new("RGB", (300, 280), "teal").save(picture, "jpeg")
    members = {
        ".jpg": picture.getvalue(),
        ".cls": b"1",
        ".txt": b"a teal wall",
        ".json": b'{"original_width": 300, "original_height": 280}',
    }
    with tarfile.open(path, "w") as tar:
        for i in range(3):
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{i:08d}{ending}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    return path


def stand_in(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options that let a data section find data here."""
    if name == "openmoji":
        return {}
    fixture = {"webdataset": "shard", "image_folder": "image_folder"}[name]
    return {"path": str(request.getfixturevalue(fixture))}


def test_every_recipe_resolves_to_what_it_did():
    """After a deliberate change: `python -m tests.recipes`, and the difference shows which sections changed."""
    assert json.loads(GOLDEN.read_text()) == {name_of(path): digests(path) for path in RECIPES}


@pytest.mark.parametrize("path", BASES, ids=name_of)
def test_a_base_alone_is_no_recipe(path):
    """A file whose name begins with _ holds what some recipes beside it share, and is refused as a run."""
    users = [p for p in RECIPES if p.parent == path.parent and f"base: {path.name}\n" in p.read_text()]
    assert len(users) > 1
    tree = read_yaml(path)
    with pytest.raises(ConfigError):
        build_dataclass(GeneratorRun if "generator" in tree else TokenizerRun, tree)


@files("tokenizer")
def test_tokenizer_run(path, request):
    run = whole(build_dataclass(TokenizerRun, read_yaml(path)))
    with torch.device("meta"):
        tokenizer = build_tokenizer(run.tokenizer)
        discriminator = build_discriminator(run.discriminator) if run.discriminator else None
    assert isinstance(tokenizer, Tokenizer)
    assert_trainable(tokenizer, run.optimizer)
    assert_learns(run, run.optimizer)
    assert (discriminator is not None) == (run.losses.discriminator_weight > 0)
    TOKENIZER_TASKS[tokenizer.learns].check(run, tokenizer)
    kinds = {
        "adversarial": discriminator is not None,
        "entropy": bool(tokenizer.quantize.entropy_weight),
    }
    assert list(short_tokenizer_run(run.training, run.schedule, run.losses, **kinds)) == []
    assert (run.teacher is not None) == (tokenizer.learns != "pixels" or tokenizer.copies_teacher)
    assert (run.initialize is not None) == tokenizer.frozen_encoder
    if tokenizer.learns in ("features", "codebook"):
        teacher = teacher_of(run.teacher)
        assert (teacher.width, teacher.grid, teacher.grid) == tokenizer.prediction_shape
    if discriminator is not None:
        rate = run.discriminator_learning_rate or run.optimizer.learning_rate
        optimizer = replace(run.optimizer, learning_rate=rate, muon_learning_rate=None)
        assert_trainable(discriminator, optimizer)
        assert_learns(run, optimizer, start=run.losses.discriminator_start)
    for name, section in (("data.train", run.data.train), ("data.validation", run.data.validation)):
        builder, options = choose(name, DATASETS, section)
        checked = check_options(name, builder, options)
        assert checked["image_size"] == tokenizer.image_size
        source = build_images(name, {**section, **stand_in(section["name"], request)}, tokenizer.image_size)
        batch = next(iter(train_loader(source, seed=0, batch_size=2)))
        assert batch["images"].shape == (2, 3, tokenizer.image_size, tokenizer.image_size)
        assert ("captions" in batch) == section.get("captions", False)


def teacher_of(section: dict[str, Any]) -> nn.Module:
    """The teacher of a section, without its weights."""
    options = check_options("teacher", load_teacher, section)
    options.pop("weights", None)
    with torch.device("meta"):
        return build_teacher(**options)


@files("codebook")
def test_codebook_that_is_fitted(path, request):
    """Its sections build, and a recipe learns pixels on exactly these codes."""
    options = build_dataclass(FitOptions, read_yaml(path))
    teacher = teacher_of(options.teacher)
    section = {**options.data, **stand_in(options.data["name"], request)}
    source = still_source(section, split="train", config={}, image_size=options.image_size)
    assert source.item_shape == (3, options.image_size, options.image_size)
    recipe = read_yaml(path.with_name(f"{path.stem}_pixels.yaml"))
    assert recipe["initialize"] == options.output
    tokenizer = recipe["tokenizer"]
    assert tokenizer["teacher"] == {k: v for k, v in options.teacher.items() if k != "weights"}
    assert tokenizer["image_size"] == options.image_size
    sizes = {"codebook_size": options.codebook_size, "code_dim": teacher.width, "use_l2_norm": True}
    assert tokenizer["quantizer"] == {"name": "vq", **sizes} and options.metric == "cosine"


@files("generator")
def test_generator_run(path, tmp_path):
    run = whole(build_dataclass(GeneratorRun, read_yaml(path)))
    with torch.device("meta"):
        generator = build_generator({**SIZES, **run.generator})
    assert isinstance(generator, Generator)
    assert_trainable(generator, run.optimizer)
    assert_learns(run, run.optimizer)
    build_dataclass(settings_type(generator), run.sampling, "sampling")
    if isinstance(generator, AutoregressiveGenerator):
        last = run.training.max_steps if generator.any_order else 0
        assert run.maskgit is None and (run.rar is not None or not generator.any_order)
        assert run.rar is None or run.rar.randomness_anneal_end <= last
    else:
        assert run.rar is None
    assert list(short_generator_run(run.training, run.schedule, run.rar)) == []
    assert run.tokens is None, "it is filled in by training"
    file = tmp_path / "train.tokens"
    write_tokens(file, generator)
    source = TokenMemmap(path=file)
    batch = next(iter(train_loader(source, seed=0, batch_size=2)))
    assert batch["tokens"].shape == (2, generator.num_tokens)
    if run.data.tokenizer in RELEASES:  # the sizes in the file are those of the tokens
        with torch.device("meta"):
            tokenizer = build_tokenizer(RELEASES[run.data.tokenizer].section)
        assert (generator.codebook_size, generator.num_tokens) == (
            tokenizer.codebook_size,
            tokenizer.num_tokens,
        )


def write_tokens(path: Path, generator: Generator) -> None:
    """A token file as the recipe's generator learns from."""
    header = TokenHeader(
        num_images=3,
        crops=1,
        num_tokens=generator.num_tokens,
        codebook_size=generator.codebook_size,
        tokenizer="nobody",
        weight_hash="",
        image_size=16,
        class_names=[str(label) for label in range(generator.num_classes)],
    )
    TokenWriter.create(path, header)
    writer = TokenWriter(path)
    writer.write([0, 1, 2], np.zeros((3, 1, generator.num_tokens), dtype=np.int64), [0, 1, 2])
    writer.close()
    TokenWriter.finish(path)
