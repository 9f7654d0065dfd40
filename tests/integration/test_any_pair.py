"""Any tokenizer with any generator: train on its tokens for a few steps, sample, and get images."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sample_imagenet
import train_rar
from data.token_memmap import TokenMemmap
from jobs.options.pretokenize import PretokenizeOptions
from jobs.pretokenize import pretokenize
from modeling.factory import build_tokenizer
from modeling.tokenizers.sub_tokens import suggest_factors
from tests.conftest import TOKENIZER, write_run
from tests.parity import fill_module
from training.generator_settings import GeneratorRun

SIZES = {"hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_size": 64}
PATCHES = {"encoder_patch_size": 16, "decoder_patch_size": 16, "image_size": 32}
TWO_STAGE = {
    "layout": "two_stage",
    "proxy_codebook_size": 32,
    "proxy_code_dim": 8,
    "pixel_decoder_channels": 32,
}
# Four times as large as the grid of codes.
CONVOLUTIONS = {"base_channels": 32, "multipliers": [1, 1, 1], "num_blocks": 1}
PIXELS = CONVOLUTIONS | {"z_channels": 32}
TOKENIZERS = {
    "titok": TOKENIZER,
    "titok cosine codes": TOKENIZER
    | {"quantizer": {"name": "vq", "codebook_size": 40, "code_dim": 4, "use_l2_norm": True}},
    "titok two stages": TOKENIZER | PATCHES | TWO_STAGE,
    "titok fsq": TOKENIZER | {"quantizer": {"name": "fsq", "levels": [5, 5, 3]}},
    "titok bsq": TOKENIZER | {"quantizer": {"name": "bsq", "bits": 6}},
    "maskgit_vqgan": CONVOLUTIONS
    | {"name": "maskgit_vqgan", "image_size": 32, "codebook_size": 24, "code_dim": 8},
    "vqgan": CONVOLUTIONS
    | {
        "name": "vqgan",
        "image_size": 16,
        "z_channels": 16,
        "quantizer": {"name": "vq", "codebook_size": 24, "code_dim": 8},
    },
    "vqgan ibq": CONVOLUTIONS
    | {
        "name": "vqgan",
        "image_size": 16,
        "z_channels": 16,
        "connector_widths": [],
        "quantizer": {"name": "ibq", "codebook_size": 49, "code_dim": 16},
    },
    "magvit2 lfq": CONVOLUTIONS
    | {"name": "magvit2", "image_size": 16, "quantizer": {"name": "lfq", "bits": 6}},
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
    "factorized_ar": {"name": "factorized_ar", **SIZES, "intra_depth": 1},
    "ibq_ar": {"name": "ibq_ar", **SIZES},
    "rar on sub-tokens": {"name": "rar", **SIZES},
    "maskgit on sub-tokens": {"name": "maskgit", **SIZES, "dropout": 0.1},
}
WITH_PLACES = ("gpt", "factorized_ar", "ibq_ar")  # they know rows and columns of tokens that have some
# The fast pairs: every tokenizer and every generator, once at least.
FAST = {
    "titok": "uvit",
    "titok cosine codes": "rar",
    "titok two stages": "maskgit",
    "titok fsq": "rar",
    "titok bsq": "maskgit on sub-tokens",
    "maskgit_vqgan": "gpt",
    "vqgan": "ibq_ar",
    "vqkd with pixels": "gpt",
    "cluster with pixels": "factorized_ar",
    "vqgan ibq": "rar on sub-tokens",
    "magvit2 lfq": "factorized_ar",
}


def codes_of(tokenizer: str) -> int:
    """Codebook size that a tokenizer's section means."""
    section = TOKENIZERS[tokenizer]
    quantizer = section.get("quantizer", section)
    if "levels" in quantizer:
        return math.prod(quantizer["levels"])
    return 2 ** quantizer["bits"] if "bits" in quantizer else quantizer["codebook_size"]


def options_of(generator: str, tokenizer: str) -> list[str]:
    """Arguments that choose a generator and what its tokens are."""
    section, codes = dict(GENERATORS[generator]), codes_of(tokenizer)
    if generator in WITH_PLACES:
        section["rope"] = "1d" if "titok" in tokenizer else "2d"
    if generator == "factorized_ar":
        first = max(d for d in range(2, codes) if codes % d == 0 and d * d <= codes)
        section["factors"] = [first, codes // first]
    split = [f"data.factors={suggest_factors(codes)}"] if "sub-tokens" in generator else []
    return [f"generator.{key}={value}" for key, value in section.items()] + split


@pytest.fixture(scope="module")
def tokenizer_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of the tokenizers, with deterministic weights."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        name: write_run(root / name.replace(" ", "_"), {"tokenizer": s}, fill_module(build_tokenizer(s)))
        for name, s in TOKENIZERS.items()
    }


def pairs() -> Iterator[Any]:
    """All of them, but for codebooks that are no product of equal sizes; most are slow."""
    for tokenizer in TOKENIZERS:
        for generator in GENERATORS:
            if "sub-tokens" in generator and suggest_factors(codes_of(tokenizer)) is None:
                continue
            marks = [] if FAST[tokenizer] == generator else pytest.mark.slow
            yield pytest.param(tokenizer, generator, marks=marks)


def test_every_generator_has_a_fast_pair():
    assert set(FAST.values()) == set(GENERATORS)


@pytest.mark.parametrize(("tokenizer", "generator"), list(pairs()))
def test_trains_and_samples(tokenizer, generator, tokenizer_runs, image_folder, tmp_path, program: Callable):
    tokens, run, folder = tmp_path / "x.tokens", tmp_path / "run", tokenizer_runs[tokenizer]
    done = program(
        pretokenize,
        PretokenizeOptions,
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
        parts = suggest_factors(header.codebook_size) if "sub-tokens" in generator else [header.codebook_size]
        assert samples["tokens"].shape == (4, header.num_tokens * len(parts))
        assert samples["tokens"].max() < parts[0]


@pytest.mark.parametrize("generator", [g for g in GENERATORS if "sub-tokens" not in g])
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
