"""Starting from other weights, and sections that do not fit the tokenizer's layout."""

import re

import pytest
import torch

import train_titok
from modeling.factory import build_tokenizer
from tests.conftest import TOKENIZER
from training.tokenizer_run import TokenizerRun


def variant(**quantizer):
    return build_tokenizer(TOKENIZER | {"quantizer": TOKENIZER["quantizer"] | quantizer})


def test_trained_codes_survive_the_first_step_of_clustering():
    given, tokenizer = variant(), variant(online_clustering=True)
    torch.nn.init.normal_(given.quantize.embedding.weight)
    tokenizer.copy_weights(given)
    before = tokenizer.quantize.embedding.weight.clone()
    assert torch.equal(before, given.quantize.embedding.weight)
    tokenizer.train()(torch.rand(2, 3, 16, 16))
    assert torch.allclose(tokenizer.quantize.embedding.weight, before, atol=1e-3)
    variant().copy_weights(tokenizer)  # the other way round the statistics are left out


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="'quantize.embedding.weight' has shape"):
        variant().copy_weights(variant(codebook_size=40))
    with pytest.raises(ValueError, match=r"it lacks 'encoder.transformer.1"):
        build_tokenizer(TOKENIZER | {"encoder_depth": 2}).copy_weights(variant())
    with pytest.raises(ValueError, match=r"it has 'encoder.transformer.1"):
        variant().copy_weights(build_tokenizer(TOKENIZER | {"encoder_depth": 2}))


@pytest.mark.parametrize(
    ("twin", "option", "message"),
    [
        ("titok", "teacher=maskgit-vqgan", "teacher='maskgit-vqgan' has no use"),
        ("titok", "text_encoder=x", "takes no text"),
        (
            "titok",
            "losses.entropy_boost=3",
            r"losses.entropy_boost=3.* has no use: the quantizer has no entropy term",
        ),
        ("magvit2", "tokenizer.quantizer.entropy_weight=0", r"losses.entropy_boost=1.0 has no use"),
        ("titok_stage1", "teacher=null", "teacher is missing"),
        ("titok_stage1", "discriminator.name=nlayer", "discriminator must be null"),
        ("titok_stage2", "initialize=null", "initialize is missing"),
        ("vqkd_pixels", "initialize=null", "initialize is missing; a pixel decoder"),
        ("vqkd", "teacher=null", "teacher is missing; .* a section with a name of timm"),
        ("titok_stage1", "teacher=nowhere", "nowhere does not exist"),
    ],
)
def test_sections_without_use_or_missing_ones(twin, option, message, program, tmp_path):
    arguments = [f"config=configs/debug/{twin}.yaml", f"experiment.output_dir={tmp_path / 'run'}", option]
    done = program(train_titok, TokenizerRun, *arguments)
    assert done.code == 1 and re.search(message, done.err)
    assert not (tmp_path / "run").exists()
