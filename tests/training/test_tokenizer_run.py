"""Starting from other weights, sections that do not fit the tokenizer, and the soft start of every tokenizer."""

import importlib.util
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import train_titok
from common.build import ConfigError, build_dataclass
from common.config import read_yaml
from modeling.factory import build_tokenizer
from modeling.tokenizers import TOKENIZERS
from tests.conftest import TOKENIZER
from tests.recipes import RECIPES
from training.tasks import TOKENIZER_TASKS
from training.tasks.tokenizer import TokenizerTask
from training.tokenizer_settings import LearningSettings, TokenizerRun


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


def test_images_without_captions_get_the_name_of_their_class():
    """The classes of a batch are a few of a thousand numbers, which stand for ImageNet's names."""
    asked = []
    encode = lambda captions: asked.extend(captions) or torch.zeros(len(captions), 2, 4)  # noqa: E731
    task = SimpleNamespace(text=SimpleNamespace(encode=encode))
    numbers = [str(number) for number in range(1000)]
    TokenizerTask.text_of(task, {"labels": torch.tensor([207, 1])}, numbers)
    TokenizerTask.text_of(task, {"labels": torch.tensor([0])}, ["red panda", "207"])
    TokenizerTask.text_of(task, {"labels": torch.tensor([0]), "captions": ["a dog on grass"]}, numbers)
    assert asked == [
        "A photo of a golden retriever.",
        "A photo of a goldfish.",
        "A photo of a red panda.",
        "a dog on grass",
    ]


@pytest.mark.parametrize(
    ("twin", "option", "message"),
    [
        (
            "titok",
            "teacher=maskgit-vqgan",
            "teacher='maskgit-vqgan' is not used: this tokenizer learns from images only",
        ),
        ("titok", "text_encoder=x", "takes no text"),
        (
            "titok",
            "losses.entropy_boost=3",
            r"losses.entropy_boost=3.* is not used: the quantizer has no entropy term",
        ),
        ("magvit2", "tokenizer.quantizer.entropy_weight=0", r"losses.entropy_boost=1.0 is not used"),
        ("titok_stage1", "teacher=null", "teacher is missing"),
        (
            "titok_stage1",
            "discriminator.name=nlayer",
            r"discriminator=.*nlayer.* is not used: .* makes no pixels",
        ),
        ("titok_stage2", "initialize=null", "initialize is missing"),
        (
            "vqkd_pixels",
            "initialize=null",
            "initialize is missing; encoder and codes of this tokenizer are frozen",
        ),
        ("vqkd", "teacher=null", "teacher is missing; .* a section with a name of timm"),
        ("titok_stage1", "teacher=nowhere", "nowhere does not exist"),
        (
            "titok_stage1",
            "losses.discriminator_weight=1",
            r"losses.discriminator_weight=1.0 is not used: .* makes no pixels",
        ),
        ("titok_stage1", "discriminator_learning_rate=1", "discriminator_learning_rate=1.0 is not used"),
        ("titok_stage2", "teacher=null", "teacher is missing; the pixel decoder starts from"),
        ("vqkd", "teacher=maskgit-vqgan", "teacher='maskgit-vqgan' has the wrong type; expected section"),
        ("vqkd", "evaluation.metrics=[psnr]", "evaluation=.* is not used: .* makes no pixels"),
        (
            "cluster_online",
            "losses.quantizer_weight=2",
            "losses.quantizer_weight=2.0 is not used: .* its codes",
        ),
    ],
)
def test_sections_without_use_or_missing_ones(twin, option, message, program, tmp_path):
    arguments = [f"config=configs/debug/{twin}.yaml", f"experiment.output_dir={tmp_path / 'run'}", option]
    done = program(train_titok, TokenizerRun, *arguments)
    assert done.code == 1 and re.search(message, done.err)
    assert not (tmp_path / "run").exists()


def test_a_start_that_does_not_fit_names_the_option(tiny_tokenizer_run):
    tokenizer = build_tokenizer(TOKENIZER | {"encoder_depth": 3})
    task, run = TOKENIZER_TASKS[tokenizer.learns], LearningSettings(initialize=str(tiny_tokenizer_run))
    with pytest.raises(
        ConfigError, match=f"initialize={tiny_tokenizer_run}: it lacks 'encoder.transformer.1"
    ):
        task.initialize(run, tokenizer)


REFUSED = {  # twins whose codes cannot start softly
    "titok_vae": "has no codes",
    "tatitok_vae": "has no codes",
    "titok_stage2": "are frozen",
    "vqkd_pixels": "are frozen",
    "cluster_pixels": "are frozen",
    "cluster_online": "learns nothing but its codes",
}
SOFT = {path.stem: read_yaml(path) for path in RECIPES if path.parent.name == "debug"}
SOFT = {name: tree for name, tree in SOFT.items() if "tokenizer" in tree}


def test_soft_start_is_tested_with_every_tokenizer():
    assert {tree["tokenizer"]["name"] for tree in SOFT.values()} == set(TOKENIZERS)
    ways = {build_tokenizer(SOFT[name]["tokenizer"]).learns for name in SOFT if "cluster" not in name}
    assert ways | {"codebook"} == set(TOKENIZER_TASKS)


@pytest.mark.parametrize("name", SOFT)
def test_soft_start_of_every_tokenizer(name):
    """`losses.quantize_end` works, or is refused by name."""
    if "cluster" in name and not importlib.util.find_spec("timm"):
        pytest.skip("needs timm")
    run = build_dataclass(TokenizerRun, SOFT[name])
    tokenizer = build_tokenizer(run.tokenizer).train()
    task = TOKENIZER_TASKS[tokenizer.learns]
    task.check(run, tokenizer)
    run.losses = replace(run.losses, quantize_end=4)
    if name in REFUSED:
        with pytest.raises(ConfigError, match=f"losses.quantize_end=4 is not used: .*{REFUSED[name]}"):
            task.check(run, tokenizer)
        return
    task.check(run, tokenizer)
    images, bypass = torch.rand(2, 3, *[tokenizer.image_size] * 2), torch.tensor([True, False])
    text = (
        {"text": torch.rand(2, tokenizer.text_length, tokenizer.text_width)} if tokenizer.needs_text else {}
    )
    tokenizer(torch.rand_like(images), **text)  # some codes begin as clusters of their first batch
    output = tokenizer(images, bypass=bypass, **text)
    exact = tokenizer.quantize.normalize(tokenizer.encode_latents(images))
    torch.testing.assert_close(output.quantized[0], exact[0])
    assert not torch.allclose(output.quantized[1], exact[1])
    assert output.reconstructions.shape[1:] == tokenizer.prediction_shape
