"""Every debug twin and every recipe for small machines, stopped after each step and resumed: the same bytes."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import train_rar
import train_titok
from common.config import read_yaml
from data.token_memmap import TokenHeader, TokenWriter
from tests.integration.test_debug_twins import TWINS, teacher_weights, train  # noqa: F401 (fixtures)
from tests.recipes import RECIPES, name_of
from training.generator_settings import GeneratorRun
from training.stop import StopRequest
from training.tokenizer_settings import TokenizerRun

FAST = ("titok", "rar", "magvit2")
OPENMOJI = [p for p in RECIPES if p.stem.startswith("openmoji")]
STEPS = 4
OPTIONS = [
    f"training.max_steps={STEPS}",
    "schedule.warmup_steps=1",
    "training.log_every=1",
    "training.num_workers=0",
]


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`stops(run)` calls `run` until it has been stopped after every step but the last; returns what it returned."""

    def call(run: Callable) -> list:
        left = {STEPS}

        def agreed(self: StopRequest, *, now: bool) -> bool:
            if self.step in left:  # it resumed there
                return False
            left.add(self.step)
            self.signal = signal.SIGTERM
            return True

        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "agreed", agreed)
            return [run() for _ in range(STEPS)]

    return call


def same(one: Path, two: Path) -> None:
    files = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert Path("model.safetensors") in files
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in TWINS])
def test_twin(name, train, stops, tmp_path):  # noqa: F811
    options = [*OPTIONS, "training.keep_checkpoints=1"]
    if "discriminator" in read_yaml(f"configs/debug/{name}.yaml"):
        options.append("losses.discriminator_start=1")
    whole = train(name, "whole", *options)
    codes = stops(lambda: train(name, "stopped", *options, expected=(0, 143)))
    assert len(codes) == STEPS
    same(whole, tmp_path / "stopped")


def tokens(path: Path, section: dict) -> Path:
    """A token file that fits a generator."""
    header = TokenHeader(
        num_images=40,
        crops=1,
        num_tokens=section.get("num_tokens", 32),
        codebook_size=section.get("codebook_size", 4096),
        tokenizer="nobody",
        weight_hash="0" * 16,
        image_size=64,
        class_names=["a", "b"],
    )
    TokenWriter.create(path, header)
    writer, draws = TokenWriter(path), np.random.default_rng(0)
    writer.write(
        np.arange(40), draws.integers(0, header.codebook_size, (40, 1, header.num_tokens)), np.arange(40) % 2
    )
    writer.close()
    TokenWriter.finish(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("path", OPENMOJI, ids=name_of)
def test_recipe(path, program, stops, tmp_path):
    tree = read_yaml(path)
    options = [f"config={path}", *OPTIONS, "training.keep_checkpoints=1", "training.per_gpu_batch_size=4"]
    options += ["training.gradient_accumulation_steps=1", "training.mixed_precision=no"]
    entry = (train_titok, TokenizerRun)
    if "generator" in tree:
        entry = (train_rar, GeneratorRun)
        options += [f"data.tokens={tokens(tmp_path / 'x.tokens', tree['generator'])}"]
        options += ["data.validation=null", "data.tokenizer=null", "training.preview_every=0"]
    else:
        options += ["evaluation.metrics=[psnr]"]
    ends = [program(*entry, *options, f"experiment.output_dir={tmp_path / 'whole'}")]
    ends += stops(lambda: program(*entry, *options, f"experiment.output_dir={tmp_path / 'stopped'}"))
    assert [end.code for end in ends] == [0, *[143] * (STEPS - 1), 0], [end.err for end in ends]
    same(tmp_path / "whole", tmp_path / "stopped")
