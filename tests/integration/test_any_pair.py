"""Any tokenizer with any generator: train on its tokens for a few steps, sample, and get images."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sample_imagenet
import train_rar
from data.token_memmap import TokenMemmap
from modeling.factory import build_tokenizer
from scripts import pretokenize
from tests.conftest import TOKENIZER, write_run
from tests.parity import fill_module
from training.generator_run import GeneratorRun

SIZES = {"hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_size": 64}
PATCHES = {"encoder_patch_size": 16, "decoder_patch_size": 16, "image_size": 32}
TWO_STAGE = {
    "layout": "two_stage",
    "proxy_codebook_size": 32,
    "proxy_code_dim": 8,
    "pixel_decoder_channels": 32,
}
# Four times as large as the grid of codes.
PIXELS = {"base_channels": 32, "multipliers": [1, 1, 1], "num_blocks": 1, "z_channels": 32}
TOKENIZERS = {
    "titok": TOKENIZER,
    "titok cosine codes": TOKENIZER
    | {"quantizer": {"name": "vq", "codebook_size": 40, "code_dim": 4, "use_l2_norm": True}},
    "titok two stages": TOKENIZER | PATCHES | TWO_STAGE,
    "titok fsq": TOKENIZER | {"quantizer": {"name": "fsq", "levels": [5, 5, 3]}},
    "maskgit_vqgan": {
        "name": "maskgit_vqgan",
        "image_size": 32,
        "base_channels": 32,
        "multipliers": [1, 1, 1],
        "num_blocks": 1,
        "codebook_size": 24,
        "code_dim": 8,
    },
    "vqgan": {
        "name": "vqgan",
        "image_size": 16,
        "base_channels": 32,
        "multipliers": [1, 1, 1],
        "num_blocks": 1,
        "z_channels": 16,
        "quantizer": {"name": "vq", "codebook_size": 24, "code_dim": 8},
    },
    "vqkd with pixels": {
        "name": "vqkd",
        "image_size": 16,
        "patch_size": 4,
        "feature_channels": 16,
        "encoder_hidden_size": 32,
        "encoder_depth": 1,
        "encoder_num_heads": 2,
        "decoder_hidden_size": 32,
        "decoder_num_heads": 2,
        "quantizer": {"name": "spherical_vq", "codebook_size": 24, "code_dim": 8},
        "pixel_decoder": PIXELS,
    },
}
if importlib.util.find_spec("timm"):
    TOKENIZERS["cluster with pixels"] = {
        "name": "cluster",
        "image_size": 16,
        "teacher": {"name": "test_vit.r160_in1k", "input_size": 64},
        "quantizer": {"name": "vq", "codebook_size": 24, "code_dim": 64, "use_l2_norm": True},
        "pixel_decoder": PIXELS,
    }
GENERATORS = {
    "rar": {"name": "rar", **SIZES},
    "maskgit": {"name": "maskgit", **SIZES, "dropout": 0.1},
    "uvit": {"name": "uvit", **SIZES},
    "gpt": {"name": "gpt", **SIZES},
}


def options_of(generator: str, tokenizer: str) -> list[str]:
    """Arguments that choose a generator; GPT knows the rows and columns of tokens that have some."""
    section = GENERATORS[generator]
    if generator == "gpt":
        section = section | {"rope": "1d" if "titok" in tokenizer else "2d"}
    return [f"generator.{key}={value}" for key, value in section.items()]


@pytest.fixture(scope="module")
def tokenizer_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of the tokenizers, with deterministic weights."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        name: write_run(root / name.replace(" ", "_"), {"tokenizer": s}, fill_module(build_tokenizer(s)))
        for name, s in TOKENIZERS.items()
    }


def pairs() -> Iterator[Any]:
    """All of them; fast are one tokenizer with every generator, and every other one with a single generator."""
    for tokenizer in TOKENIZERS:
        first = "rar" if "titok" in tokenizer else "gpt"
        for generator in GENERATORS:
            fast = tokenizer == "titok" or generator == first
            yield pytest.param(tokenizer, generator, marks=[] if fast else pytest.mark.slow)


@pytest.mark.parametrize(("tokenizer", "generator"), list(pairs()))
def test_trains_and_samples(tokenizer, generator, tokenizer_runs, image_folder, tmp_path, program: Callable):
    tokens, run, folder = tmp_path / "x.tokens", tmp_path / "run", tokenizer_runs[tokenizer]
    done = program(
        pretokenize,
        pretokenize.PretokenizeOptions,
        f"tokenizer={folder}",
        "data.name=image_folder",
        f"data.path={image_folder}",
        f"output={tokens}",
        "crops=flip",
        "num_workers=0",
    )
    assert done.code == 0, done.err
    header = TokenMemmap(path=tokens).header
    options = options_of(generator, tokenizer)
    done = program(
        train_rar,
        GeneratorRun,
        *options,
        f"data.tokens={tokens}",
        f"data.validation={tokens}",
        f"data.tokenizer={folder}",
        f"experiment.output_dir={run}",
        "training.max_steps=3",
        "training.per_gpu_batch_size=4",
        "training.num_workers=0",
    )
    assert done.code == 0, done.err
    assert (run / "samples.png").is_file(), "previews are drawn at the end"
    output = tmp_path / "samples"
    done = program(
        sample_imagenet,
        sample_imagenet.SampleOptions,
        f"generator={run}",
        f"output={output}",
        "num_samples=4",
        "png=false",
    )
    assert done.code == 0, done.err
    with np.load(output / "samples.npz") as samples:
        side = header.image_size
        assert samples["arr_0"].shape == (4, side, side, 3)
        assert samples["tokens"].shape == (4, header.num_tokens)
        assert samples["tokens"].max() < header.codebook_size


@pytest.mark.parametrize("generator", GENERATORS)
def test_learns_from_images_as_they_come(
    generator, tokenizer_runs, image_folder, tmp_path, program: Callable
):
    options = options_of(generator, "titok")
    done = program(
        train_rar,
        GeneratorRun,
        *options,
        "data.images.name=image_folder",
        f"data.images.path={image_folder}",
        "data.images.image_size=16",
        "data.images.random_flip=true",
        f"data.tokenizer={tokenizer_runs['titok']}",
        f"experiment.output_dir={tmp_path}",
        "training.max_steps=3",
        "training.per_gpu_batch_size=4",
        "training.num_workers=0",
    )
    assert done.code == 0, done.err
    assert "codebook_size: 48" in (tmp_path / "config.yaml").read_text()


def test_a_continuous_tokenizer_is_refused(tmp_path, image_folder, program: Callable):
    section = TOKENIZER | {"quantizer": {"name": "vae", "code_dim": 4}}
    folder = write_run(tmp_path / "vae", {"tokenizer": section}, fill_module(build_tokenizer(section)))
    done = program(
        train_rar,
        GeneratorRun,
        "generator.name=rar",
        *[f"generator.{k}={v}" for k, v in SIZES.items()],
        "data.images.name=image_folder",
        f"data.images.path={image_folder}",
        "data.images.image_size=16",
        f"data.tokenizer={folder}",
        f"experiment.output_dir={tmp_path / 'run'}",
        "training.max_steps=1",
    )
    assert done.code == 1 and "continuous bottleneck" in done.err
