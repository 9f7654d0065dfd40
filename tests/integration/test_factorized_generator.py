"""A generator of sub-tokens: trained on whole tokens, sampled with settings per sub-token, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sample_imagenet
import train_rar
from common.config import read_yaml
from data.token_memmap import TokenHeader, TokenWriter
from jobs.options.sample_images import SampleOptions
from modeling.factory import build_tokenizer
from storage.weights import weight_hash
from tests.conftest import CLASS_NAMES, TOKENIZER
from tests.parity import fill_module
from training.generator_settings import GeneratorRun

SIZES = ["hidden_size=32", "depth=1", "num_heads=2", "mlp_size=64", "rope=1d"]


@pytest.fixture
def token_file(tiny_tokenizer_run: Path, tmp_path: Path) -> Path:
    """300 images of random tokens of `tiny_tokenizer_run`; every class has 16 codes of its own."""
    header = TokenHeader(
        num_images=300,
        crops=1,
        num_tokens=6,
        codebook_size=48,
        tokenizer=str(tiny_tokenizer_run),
        weight_hash=weight_hash(fill_module(build_tokenizer(TOKENIZER))),
        image_size=16,
        class_names=CLASS_NAMES,
    )
    labels = np.arange(300) % 3
    tokens = np.random.default_rng(0).integers(0, 16, (300, 1, 6)) + 16 * labels[:, None, None]
    TokenWriter.create(tmp_path / "train.tokens", header)
    writer = TokenWriter(tmp_path / "train.tokens")
    writer.write(np.arange(300), tokens, labels)
    writer.close()
    TokenWriter.finish(tmp_path / "train.tokens")
    return tmp_path / "train.tokens"


@pytest.mark.parametrize(
    "name", [["name=factorized_ar", "factors=[6,8]", "intra_depth=1"], ["name=ibq_ar", "gate_init=0.01"]]
)
def test_trains_evaluates_and_samples(name, token_file, tiny_tokenizer_run, tmp_path, program: Callable):
    factorized = "name=factorized_ar" in name
    run, out = tmp_path / "run", tmp_path / "out"
    sampling = ["guidance_scale=2.0"]
    if factorized:
        sampling = ["guidance_scale=[1.0,2.0]", "temperature=[1.1,1.0]", "top_k=[0,5]", "guidance_power=0"]
    done = program(
        train_rar,
        GeneratorRun,
        *(f"sampling.{option}" for option in sampling),
        *(f"generator.{option}" for option in [*name, *SIZES]),
        f"data.tokens={token_file}",
        f"data.validation={token_file}",
        f"experiment.output_dir={run}",
        "optimizer.learning_rate=0.01",
        "training.max_steps=40",
        "training.per_gpu_batch_size=16",
        "training.num_workers=0",
        "training.log_every=10",
    )
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "evaluate"]
    # 48 codes, of which every class uses 16: from ln 48 towards ln 16.
    assert losses and losses[-1] < np.log(48) - 0.3
    if factorized:
        assert read_yaml(run / "config.yaml")["sampling"]["temperature"] == [1.1, 1.0]
    arguments = [f"generator={run}", f"tokenizer={tiny_tokenizer_run}", "num_samples=4", "png=false"]
    done = program(sample_imagenet, SampleOptions, *arguments, f"output={out}")
    assert done.code == 0, done.err
    with np.load(out / "samples.npz") as arrays:
        assert arrays["tokens"].shape == (4, 6) and arrays["tokens"].max() < 48
    change = "temperature=[1.3,0.5]"
    done = program(sample_imagenet, SampleOptions, *arguments, f"output={tmp_path}/other", change)
    if factorized:
        assert done.code == 0, done.err
        facts = json.loads((tmp_path / "other" / "samples.json").read_text())
        assert facts["temperature"] == [1.3, 0.5] and facts["guidance_scale"] == [1.0, 2.0]
        done = program(sample_imagenet, SampleOptions, *arguments, f"output={tmp_path}/o3", "top_p=[1,1,1]")
        assert "top_p=[1.0, 1.0, 1.0] has 3 numbers, but tokens have G=2 sub-tokens" in done.err
    else:
        assert "temperature=[1.3, 0.5] has 2 numbers, but tokens have G=1 sub-tokens" in done.err
    assert done.code != 0 and not (tmp_path / "o3").exists()
