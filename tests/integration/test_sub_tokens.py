"""Generators that learn sub-tokens, from token files and from images, end to end."""

import json

import numpy as np
import pytest
import torch

import sample_imagenet
import train_rar
from common.config import read_yaml
from data.token_memmap import TokenHeader, TokenMemmap, TokenWriter
from jobs.convert_checkpoint import convert_checkpoint
from jobs.convert_tokens import convert_tokens
from jobs.options.convert_checkpoint import ConvertCheckpointOptions
from jobs.options.convert_tokens import ConvertTokensOptions
from jobs.options.pretokenize import PretokenizeOptions
from jobs.pretokenize import pretokenize
from modeling.factory import build_tokenizer
from modeling.pipeline import generate, load_image_model
from modeling.tokenizers.sub_tokens import SubTokenView
from storage.files import write_yaml
from tests.conftest import TOKENIZER, write_run
from tests.parity import fill_module
from training.generator_settings import GeneratorRun

QUANTIZERS = {
    "fsq": {"name": "fsq", "levels": [4, 4, 4]},
    "vq": {"name": "vq", "codebook_size": 64, "code_dim": 8},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, image_folder):
    """Run folders of two tokenizers of 64 codes, each with the tokens of seven images beside it."""
    root = tmp_path_factory.mktemp("made")
    for name, quantizer in QUANTIZERS.items():
        section = TOKENIZER | {"quantizer": quantizer}
        write_run(root / name, {"tokenizer": section}, fill_module(build_tokenizer(section)))
        options = PretokenizeOptions(
            tokenizer=str(root / name),
            output=str(root / f"{name}.tokens"),
            data={"name": "image_folder", "path": str(image_folder)},
            crops="flip",
            num_workers=0,
        )
        pretokenize(options)
    return root


@pytest.fixture
def train(program, tmp_path):
    """`train(twin, folder, *options)`: three steps of a debug twin; a second call goes on."""

    def call(twin, *options, folder="run"):
        steps = ("training.max_steps=3", "training.save_every=1", "training.per_gpu_batch_size=4")
        return program(
            train_rar,
            GeneratorRun,
            f"config=configs/debug/{twin}.yaml",
            f"experiment.output_dir={tmp_path / folder}",
            "schedule.warmup_steps=1",
            *steps,
            *options,
        )

    return call


@pytest.mark.parametrize(
    ("twin", "kind", "sizes"),
    [
        ("rar", "fsq", [8, 8]),
        ("maskgit", "vq", [4, 4, 4]),
        pytest.param("uvit", "fsq", [8, 8], marks=pytest.mark.slow),
        pytest.param("gpt", "vq", [8, 8], marks=pytest.mark.slow),
    ],
)
def test_twins_train_on_sub_tokens_and_draw_images(twin, kind, sizes, made, train, tmp_path, program):
    tokens = made / f"{kind}.tokens"
    done = train(
        twin,
        f"data.tokens={tokens}",
        f"data.validation={tokens}",
        f"data.tokenizer={made / kind}",
        f"data.factors={sizes}",
        *(["generator.rope=1d"] if twin == "gpt" else []),
    )
    assert done.code == 0, done.err
    run, count = tmp_path / "run", 6 * len(sizes)
    config = read_yaml(run / "config.yaml")
    assert config["generator"]["codebook_size"] == sizes[0] and config["generator"]["num_tokens"] == count
    assert config["tokens"]["factors"] == sizes and (run / "samples.png").is_file()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (measured,) = (r for r in records if r["kind"] == "evaluate")
    assert measured["images"] == 7 and measured["loss"] < 2 * np.log(sizes[0]), "nats per sub-token"
    done = program(
        sample_imagenet,
        sample_imagenet.SampleOptions,
        f"generator={run}",
        f"output={tmp_path / 'samples'}",
        "num_samples=4",
        "png=false",
    )
    assert done.code == 0, done.err
    model = load_image_model(run)
    labels = torch.arange(4) % model.generator.num_classes
    images = generate(model.generator, model.tokenizer, labels, seed=0, **model.sampling)
    assert isinstance(model.tokenizer, SubTokenView) and images.shape == (4, 3, 16, 16)
    with np.load(tmp_path / "samples" / "samples.npz") as stored:
        parts = torch.from_numpy(stored["tokens"])
        pixels = torch.from_numpy(stored["arr_0"]).permute(0, 3, 1, 2)
    assert parts.shape == (4, count) and int(parts.max()) < sizes[0]
    whole = model.tokenizer.join(parts)
    again = model.tokenizer.tokenizer.decode(whole).clamp(0, 1).mul(255).round()
    assert torch.equal(again.to(torch.uint8), pixels)
    assert torch.equal(images.mul(255).round().to(torch.uint8), pixels)


def test_images_as_they_come_give_the_same_sub_tokens_as_their_file(made, train, image_folder, tmp_path):
    """A run on images without augmentation learns what a run on their token file learns."""
    common = [f"data.tokenizer={made / 'fsq'}", "data.factors=[8,8]", "training.log_every=1"]
    pretokenize(
        PretokenizeOptions(
            tokenizer=str(made / "fsq"),
            output=str(tmp_path / "plain.tokens"),
            data={"name": "image_folder", "path": str(image_folder), "resize": "shorter_edge"},
            num_workers=0,
        ),
    )
    images = [
        "data.tokens=null",
        "data.images.name=image_folder",
        f"data.images.path={image_folder}",
        "data.images.image_size=16",
        "data.images.random_flip=false",
        "data.images.random_crop=false",
    ]
    for folder, options in (("file", [f"data.tokens={tmp_path / 'plain.tokens'}"]), ("images", images)):
        done = train("rar", *options, *common, folder=folder)
        assert done.code == 0, done.err
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("file", "images")]
    assert weights[0] == weights[1]


def test_lines_of_another_program_are_whole_tokens(made, train, tmp_path, program):
    lines = tmp_path / "x.jsonl"
    done = program(
        convert_tokens,
        ConvertTokensOptions,
        f"input={made / 'fsq.tokens'}",
        f"output={lines}",
    )
    assert done.code == 0, done.err
    options = [f"data.tokens={lines}", "data.factors=[8,8]", "generator.num_classes=2", "data.tokenizer=null"]
    done = train("rar", *options)
    assert done.code == 0, done.err
    assert TokenMemmap(path=tmp_path / "x.jsonl.tokens").header.codebook_size == 64


def test_a_converted_generator_still_knows_its_factors(made, train, tmp_path, program):
    options = [f"data.tokens={made / 'fsq.tokens'}", f"data.tokenizer={made / 'fsq'}", "data.factors=[8,8]"]
    assert train("rar", *options).code == 0
    done = program(
        convert_checkpoint,
        ConvertCheckpointOptions,
        f"input={tmp_path / 'run'}",
        f"output={tmp_path / 'converted'}",
    )
    assert done.code == 0, done.err
    model = load_image_model(tmp_path / "converted")
    assert model.tokenizer.num_tokens == model.generator.num_tokens == 12
    config = read_yaml(tmp_path / "run" / "config.yaml")
    config["tokens"]["factors"] = [4, 4, 4]
    write_yaml(tmp_path / "run" / "config.yaml", config)
    with pytest.raises(ValueError, match="makes 12 tokens of 8 codes, but tokenizer .* has 18 of 4"):
        load_image_model(tmp_path / "run")
    config["tokens"]["factors"] = [5, 5]
    write_yaml(tmp_path / "run" / "config.yaml", config)
    with pytest.raises(ValueError, match="sub-tokens that do not fit: factors 5 x 5 make 25 tokens"):
        load_image_model(tmp_path / "run")


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ("[8,4]", "data.factors=[8, 4] must be two or more equal sizes"),
        ("[16,16]", "data.factors 16 x 16 make 256 tokens, but the codebook has 64"),
        ("[1,64]", "data.factors=[1, 64] must be sizes of sub-tokens, each at least 2"),
        ("[64]", "two or more equal sizes"),
        ("8", "data.factors"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_training(factors, message, made, train, tmp_path):
    done = train("rar", f"data.tokens={made / 'fsq.tokens'}", f"data.factors={factors}")
    assert done.code == 1 and message in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_a_generator_that_splits_tokens_itself_takes_whole_ones(made, train, tmp_path):
    own = ["generator.name=factorized_ar", "generator.factors=[4,16]", "generator.intra_depth=1"]
    done = train("gpt", f"data.tokens={made / 'fsq.tokens'}", "data.factors=[8,8]", *own)
    assert done.code == 1 and "data.factors" in done.err and "whole tokens" in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_a_large_codebook_is_learned_whole_or_with_advice(train, tmp_path):
    """2^18 codes: one softmax is possible, with a warning that says how to do better; factors need none."""
    path, size = tmp_path / "large.tokens", 2**18
    header = TokenHeader(
        num_images=8,
        crops=1,
        num_tokens=4,
        codebook_size=size,
        tokenizer="unknown",
        weight_hash="",
        image_size=16,
        class_names=["a", "b"],
    )
    TokenWriter.create(path, header)
    writer = TokenWriter(path)
    tokens = np.random.default_rng(0).integers(0, size, (8, 1, 4))
    writer.write(np.arange(8), tokens, np.arange(8) % 2)
    writer.close()
    TokenWriter.finish(path)
    assert header.dtype == np.uint32
    few = [f"data.tokens={path}", "training.max_steps=1", "training.ema_decay=null"]
    done = train("rar", *few, folder="whole")
    assert done.code == 0 and "262144 codes by one softmax; data.factors=[512, 512]" in done.err, done.err
    done = train("rar", *few, "data.factors=[512,512]", folder="parts")
    assert done.code == 0 and "softmax" not in done.err, done.err
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("whole", "parts")]
    assert sizes[1] < sizes[0] / 50
