"""Metrics measured during training, with a toy network in the place of Inception."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import train_rar
import train_titok
from common.images import to_float, to_uint8
from evaluator.evaluator import Evaluator
from evaluator.image_set import ImageSet
from evaluator.metrics import METRICS, training_metrics
from evaluator.reference import write_reference
from evaluator.space_network import SpaceExtractor
from evaluator.spaces import SPACES
from modeling.pipeline import generate, load_generator, load_tokenizer, reconstruct
from tests.evaluator.spaces import small_network
from tests.evaluator.toy import ToyInception, put_in_place, tensor, toy_images
from training.evaluation_settings import GeneratorEvaluation, TokenizerEvaluation
from training.generator_settings import GeneratorRun
from training.tokenizer_run import build_images
from training.tokenizer_settings import TokenizerRun


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    put_in_place(monkeypatch, "inception", ToyInception())


def test_reconstructions_are_measured_by_the_evaluator(tmp_path, program):
    done = program(
        train_titok,
        TokenizerRun,
        "config=configs/debug/titok.yaml",
        "training.max_steps=2",
        "schedule.warmup_steps=1",
        "losses.discriminator_start=1",
        "evaluation.metrics=[psnr,ssim,rfid,is]",
        f"experiment.output_dir={tmp_path}",
    )
    assert done.code == 0, done.err
    measured = json.loads((tmp_path / "metrics.json").read_text())
    section = {"name": "openmoji", "image_size": 16, "split": "validation"}
    source = build_images("x", section, 16)
    originals = torch.stack([source.load(i, np.random.default_rng(0))[0] for i in range(len(source))])
    expected = Evaluator(
        networks={"inception": ToyInception()},
        metrics=["psnr", "ssim", "rfid", "is"],
        protocol="tokenizer",
    )
    results = reconstruct(load_tokenizer(tmp_path), to_float(originals))
    expected.update_pairs(results, originals, torch.arange(len(originals)))
    for name, value in expected.result().items():
        assert measured[name] == pytest.approx(value, rel=1e-3), name
    assert any(name.startswith("rfid_") for name in measured) and measured["images"] == len(source)


@pytest.fixture
def clip(monkeypatch):
    """The space in small."""
    network = small_network("clip")
    extractor = SpaceExtractor(SPACES["clip"], network, weights_hash="small", device="cpu")
    put_in_place(monkeypatch, "clip", extractor)
    return extractor


@pytest.fixture
def reference(tmp_path, clip):
    """Statistics of toy images."""
    images = ImageSet([ToyInception(), clip], [METRICS["fid"], METRICS["sfid"], METRICS["fdr_clip"]])
    images.update(tensor(toy_images(60)))
    path = tmp_path / "reference.npz"
    facts = {"inception": {"weights_hash": "toy", "approximate": False}}
    statistics = {kind: found for (kind, _), found in images.results()[0].items()}
    write_reference(path, statistics, {"image_set": "training", "extractors": facts})
    return path


def test_samples_are_measured_against_a_reference(
    tmp_path, program, reference, clip, tiny_token_file, tiny_tokenizer_run
):
    tokens = [f"data.tokens={tiny_token_file}", f"data.tokenizer={tiny_tokenizer_run}"]
    common = ["config=configs/debug/rar.yaml", "training.max_steps=2", "schedule.warmup_steps=1"]
    common += ["training.per_gpu_batch_size=8", f"experiment.output_dir={tmp_path / 'run'}"]
    asked = ["evaluation.metrics=[fid,sfid,is,fdr_clip]", "evaluation.num_samples=20"]
    asked.append(f"evaluation.reference={reference}")
    rewritten = rewrite_hash(tiny_token_file, tmp_path / "own.tokens")
    tokens[0] = f"data.tokens={rewritten}"
    done = program(train_rar, GeneratorRun, *common, *tokens, *asked)
    assert done.code == 0, done.err
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    labels = torch.arange(20) % 3
    images = generate(
        load_generator(tmp_path / "run"),
        load_tokenizer(tiny_tokenizer_run),
        labels,
        seed=42,
        guidance_scale=4.0,
        guidance_power=1.0,
        temperature=1.0,
    )
    from evaluator.reference import open_reference

    expected = Evaluator(
        networks={"inception": ToyInception(), "clip": clip},
        metrics=["fid", "sfid", "is", "fdr_clip"],
        protocol="tokenizer",
        reference=open_reference(reference),
    )
    expected.update(to_uint8(images), torch.arange(20))
    for name, value in expected.result().items():
        assert measured[name] == pytest.approx(value, rel=1e-6), name
    assert {"fid_20", "fdr_clip_20", "fd_in_clip_20"} < measured.keys()


def rewrite_hash(source, path):
    """A token file like `source` whose tokenizer nobody knows."""
    from dataclasses import replace

    from data.token_memmap import TokenMemmap, TokenWriter

    tokens = TokenMemmap(path=source)
    TokenWriter.create(path, replace(tokens.header, weight_hash=""))
    writer = TokenWriter(path)
    rows = list(range(len(tokens)))
    draws = [np.random.default_rng(0)] * len(rows)
    writer.write(rows, tokens.load_many(rows, draws).numpy()[:, None], tokens.labels)
    writer.close()
    TokenWriter.finish(path)
    return path


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("titok", ["evaluation.metrics=[fid]"], "'fid' is not measured during training"),
        ("titok", ["evaluation.metrics=[pnsr]"], "'pnsr' is unknown"),
        ("titok", ["evaluation.metrics=[lpips]", "evaluation.lpips_path=nowhere.pth"], "nowhere.pth"),
        ("rar", ["evaluation.metrics=[fid]"], "evaluation.reference is missing"),
        ("rar", ["evaluation.metrics=[is]"], "needs data.tokenizer"),
        ("rar", ["evaluation.metrics=[fdr6]"], "fdr_mae, fdr_siglip, fdr_clip need it"),
        ("rar", ["evaluation.space_weights.mea=x"], "space_weights.mea is no space (did you mean 'mae'?)"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(
    script, options, message, tmp_path, program, tiny_token_file
):
    arguments = [f"config=configs/debug/{script}.yaml", f"experiment.output_dir={tmp_path / 'run'}", *options]
    if script == "rar":
        arguments.append(f"data.tokens={tiny_token_file}")
    module, settings = {"titok": (train_titok, TokenizerRun), "rar": (train_rar, GeneratorRun)}[script]
    done = program(module, settings, *arguments)
    assert done.code == 1 and message in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_help_names_the_metrics_without_importing_them():
    tokenizer, generator = (
        {field.name: field.metadata["help"] for field in dataclasses.fields(kind)}["metrics"]
        for kind in (TokenizerEvaluation, GeneratorEvaluation)
    )
    assert tokenizer == f"any of {', '.join(training_metrics('tokenizer'))}"
    whole = [name for name in training_metrics("generator") if not name.startswith("fdr_")]
    assert generator == f"any of {', '.join(whole)}, and fdr_SPACE"
