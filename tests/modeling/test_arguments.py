"""What callers give to the public functions: it works, or is refused by a line that names it."""

import copy
from functools import partial

import numpy as np
import pytest
import torch

from common.build import ConfigError
from modeling import pipeline
from modeling.arguments import checked_labels
from modeling.factory import build_generator, build_tokenizer
from modeling.generators import MaskGIT
from modeling.pretrained.hub import save_pretrained
from modeling.tokenizers import TOKENIZERS
from modeling.tokenizers.sub_tokens import SubTokenView
from sample_imagenet import SampleOptions
from tests.conftest import GENERATOR, TOKENIZER
from tests.modeling.generators.masked_models import BERT_TINY
from tests.modeling.test_half_precision import SECTIONS
from tests.parity import fill_module, filled

SHAPED = [
    name for name in SECTIONS if SECTIONS[name]["name"] in ("vqgan", "magvit2", "maskgit_vqgan", "vqkd")
]
SHAPED.remove("vqkd")  # decodes to features


def tokenizer_of(name):
    return fill_module(build_tokenizer(SECTIONS[name])).eval()


def pictures(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def text_for(tokenizer, count):
    return pictures(count, tokenizer.text_length, tokenizer.text_width) if tokenizer.needs_text else None


# ---- images of other shapes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPED)
def test_wide_and_tall_images_keep_their_shape(name):
    tokenizer = tokenizer_of(name)
    side = tokenizer.image_size
    pixels = side // tokenizer.token_grid(side, side)[0]  # of a token
    # 8 x 2 tokens are as many as 4 x 4, 4 x 1 as many as 2 x 2, and 6 x 2 are no square.
    for height, width in ((8, 2), (2, 8), (4, 1), (6, 2), (1, 4), (1, 3)):
        if height == 1 < width and not tokenizer.is_discrete:
            with pytest.raises(ValueError, match="a single row of latents"):
                pipeline.encode(tokenizer, pictures(1, 3, pixels, width * pixels))
            continue
        images = pictures(2, 3, height * pixels, width * pixels)
        found = pipeline.reconstruct(tokenizer, images, batch_size=1)
        assert found.shape == images.shape
        with torch.no_grad():
            expected = tokenizer(images).reconstructions.clamp(0, 1)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        tokens = pipeline.encode(tokenizer, images)
        if height != width:
            assert tokens.shape == (2, *([] if tokenizer.is_discrete else [8]), height, width)
        torch.testing.assert_close(pipeline.decode(tokenizer, tokens), found, atol=1e-3, rtol=0)
        if tokenizer.downscale:
            tokens, again = pipeline.reconstruct_any_size(tokenizer, images[..., 1:, 1:])
            assert tokens.shape[-2:] == (height, width) and again.shape == images[..., 1:, 1:].shape


def test_sub_tokens_of_wide_images_keep_their_shape():
    exact = tokenizer_of("magvit2 lfq")
    view, images = SubTokenView(tokenizer=exact, factors=[8, 8]).eval(), pictures(2, 3, 8, 32)
    assert pipeline.encode(view, images).shape == (2, 2, 2 * 8)
    assert torch.equal(pipeline.reconstruct(view, images), pipeline.reconstruct(exact, images))


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in (*SHAPED, "vqkd")])
def test_tokenizers_of_one_size_refuse_other_shapes(name):
    tokenizer = tokenizer_of(name)
    side = tokenizer.image_size
    for shape in ((side // 2, side * 2), (side * 2, side * 2)):
        with pytest.raises(ValueError, match=rf"must be \[B, 3, {side}, {side}\]|decodes to codes"):
            pipeline.reconstruct(tokenizer, pictures(1, 3, *shape), text=text_for(tokenizer, 1))


def test_features_are_no_reconstruction():
    with pytest.raises(ValueError, match="this VQKD decodes to features, not to images"):
        pipeline.reconstruct(tokenizer_of("vqkd"), pictures(1, 3, 16, 16))


# ---- images, captions and tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECTIONS)
def test_wrong_images_are_named(name):
    tokenizer = tokenizer_of(name)
    images = pictures(2, 3, tokenizer.image_size, tokenizer.image_size)
    for wrong, message in (
        ((images * 255).byte(), r"images are uint8 \[2, 3, .*expected float.*divide 8-bit values by 255"),
        (images > 0.5, "images are bool"),
        (images.numpy(), "images are a ndarray, expected float"),
        (images[0], r"images must be \[B, 3, H, W\] for this tokenizer, got \(3, "),
        (images[:, :1], r"images must be \[B, 3, .*got \(2, 1, "),
        (images[:, :, :3, :3], r"got \(2, 3, 3, 3\)|3 x 3 pixels: sides must be multiples"),
        (images[:, :, :0], r"got \(2, 3, 0|0 x .* pixels: sides"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pipeline.encode(tokenizer, wrong)
        with pytest.raises((ValueError, AttributeError), match=message):
            tokenizer.encode(wrong)  # silently other tokens until now where pixels are scaled by arithmetic


def test_pixels_outside_0_and_1_are_refused():
    tokenizer = tokenizer_of("vqgan")
    images = pictures(2, 3, 16, 16)
    for wrong, message in (
        (images * 2 - 1, r"values from -0\.99.* to 0\.99.*, expected 0 \.\.\. 1; scale them"),
        (images * 255, "values from .* to 254.*; scale them"),
        (images * 1.2 - 0.1, "values from -0.0.* to 1.0.*; clamp what a resize overshot"),
        (images / 0, "to inf, expected 0 ... 1$"),
        (images * float("nan"), "values from nan to nan, expected 0 ... 1$"),
    ):
        for call in (pipeline.encode, pipeline.reconstruct):
            with pytest.raises(ValueError, match=message):
                call(tokenizer, wrong)
    pipeline.encode(tokenizer, (images * 2 - 1) * 0.5 + 0.5)  # rounding is no error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", SECTIONS)
def test_images_and_captions_of_any_floating_type(name, dtype):
    tokenizer = tokenizer_of(name)
    images = pictures(2, 3, tokenizer.image_size, tokenizer.image_size).to(dtype)
    text = text_for(tokenizer, 2)
    tokens = pipeline.encode(tokenizer, images)
    assert torch.equal(tokens, pipeline.encode(tokenizer, images.float()))
    expected = pipeline.decode(tokenizer, tokens, None if text is None else text.to(dtype).float())
    found = pipeline.decode(tokenizer, tokens, None if text is None else text.to(dtype))
    assert torch.equal(found, expected) and found.dtype == torch.float32


def test_wrong_captions_are_named_before_any_work(monkeypatch):
    tokenizer, plain = tokenizer_of("twin tatitok_vq"), tokenizer_of("titok")
    images, text = pictures(2, 3, tokenizer.image_size, tokenizer.image_size), text_for(tokenizer, 2)
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_: pytest.fail("worked before it checked"))
    for wrong, message in (
        (None, r"decodes with captions: text features \[2, .* are missing"),
        (text[:1], r"text must be float \[2, .*got float32 \[1, "),
        (text[:, :, :3], "text must be float"),
        (text.long(), "got int64"),
        (["a cat", "a dog"], "got a list; a text encoder makes it of captions"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.reconstruct(tokenizer, images, text=wrong)
    with pytest.raises(ValueError, match="text is given, but a TiTok decodes without captions"):
        pipeline.reconstruct(plain, pictures(2, 3, 16, 16), text=text)


@pytest.mark.parametrize("name", SECTIONS)
def test_wrong_tokens_are_named(name):
    tokenizer = tokenizer_of(name)
    text = text_for(tokenizer, 2)
    right = pipeline.encode(tokenizer, pictures(2, 3, tokenizer.image_size, tokenizer.image_size))
    count, kind = tokenizer.num_tokens, "tokens" if tokenizer.is_discrete else "latents"
    wrong = [
        (right.tolist(), f"{kind} are a list, expected"),
        (right[0], f"{kind} are .* expected|do not form a square"),
        (right > 0, f"{kind} are bool"),
        (right.float() if tokenizer.is_discrete else right.long(), f"{kind} are .*expected"),
        (right[..., :-1], "do not form a square|expected (of|integers|floats)"),
    ]
    if tokenizer.is_discrete:
        wrong.append((right[:, :0], "expected integers"))
        low, high = right.clone(), right.clone()
        low[0, 0], high[1, -1] = -1, tokenizer.codebook_size
        wrong.append((low, "tokens from -1 to .*, expected 0 ... "))
        wrong.append((high, rf"to {tokenizer.codebook_size}, expected 0 ... {tokenizer.codebook_size - 1}"))
    else:
        wrong.append((right[:, :-1], f"expected floats.* {right.shape[1]}, "))
    for tokens, message in wrong:
        with pytest.raises(ValueError, match=message):
            pipeline.decode(tokenizer, tokens, text)
    if tokenizer.is_discrete:  # as token files store them
        assert torch.equal(
            pipeline.decode(tokenizer, right.to(torch.int16), text), pipeline.decode(tokenizer, right, text)
        )
        assert count == right.shape[1]


@pytest.mark.parametrize("name", ["magvit2 lfq", "titok bsq", "titok fsq", "titok", "vqkd with pixels"])
def test_tokenizers_themselves_wrap_no_token_on_a_cpu(name):
    tokenizer = tokenizer_of(name)
    tokens, size = torch.zeros(2, tokenizer.num_tokens, dtype=torch.int64), tokenizer.codebook_size
    for token in (-1, size, 7 * size):
        tokens[1, 2] = token
        with pytest.raises(ValueError, match=rf"{token}.*expected 0 ... {size - 1}"):
            tokenizer.decode(tokens)


@pytest.mark.parametrize("name", SECTIONS)
def test_no_images_give_no_images(name):
    tokenizer = tokenizer_of(name)
    side = tokenizer.image_size
    images, text = pictures(0, 3, side, side), text_for(tokenizer, 0)
    one = pipeline.encode(tokenizer, pictures(1, 3, side, side))
    tokens = pipeline.encode(tokenizer, images)
    assert tokens.shape == (0, *one.shape[1:]) and tokens.dtype == one.dtype
    decoded = pipeline.decode(tokenizer, tokens, text)
    assert len(decoded) == 0 and decoded.dtype == torch.float32
    if tokenizer.predicts_pixels:
        assert pipeline.reconstruct(tokenizer, images, text=text).shape == images.shape == decoded.shape


# ---- labels and settings ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models():
    return fill_module(build_generator(GENERATOR)).eval(), fill_module(build_tokenizer(TOKENIZER)).eval()


def test_labels_are_exact_integers_of_any_kind(models):
    generator, _ = models
    expected = pipeline.generate_tokens(generator, torch.tensor([2, 0]))
    for labels in ([2, 0], (2, 0), np.array([2, 0]), torch.tensor([2, 0], dtype=torch.uint8)):
        assert torch.equal(pipeline.generate_tokens(generator, labels), expected)
    for labels, message in (
        (
            torch.tensor([2.0, 0.0]),
            r"labels are float32 \[2\], expected integers \[B\] of 0 ... 2, or 3 for no class",
        ),
        ([2.7, 0], "labels are float"),
        ([True, False], "labels are bool"),
        ([[2, 0]], r"labels are int64 \[1, 2\]"),
        (2, r"labels are int64 \[\]"),
        (["cat"], r"labels=\['cat'\] are no numbers"),
        ([2, 4], "label 4 is out of range; choose 0 ... 3"),
        ([-1, 2], "label -1 is out of range"),
    ):
        for call in (
            partial(pipeline.generate_tokens, generator),
            partial(pipeline.generate, generator, models[1]),
        ):
            with pytest.raises(ValueError, match=message):
                call(labels)
    for options, message in (
        ({"indices": [0]}, "indices are 1, expected one per label: 2"),
        ({"random": [torch.Generator()]}, "random are 1, expected one per label"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.generate_tokens(generator, [2, 0], **options)


def test_no_labels_give_no_images(models):
    generator, tokenizer = models
    for labels in ([], torch.empty(0, dtype=torch.int64)):
        assert pipeline.generate_tokens(generator, labels).shape == (0, generator.num_tokens)
        assert pipeline.generate(generator, tokenizer, labels).shape == (0, 3, 16, 16)
        masked = filled(lambda: MaskGIT(**BERT_TINY))
        steps = pipeline.masking_steps(masked, labels, num_steps=3)
        assert [step.shape for step in steps] == [(0, masked.num_tokens)] * 4
    assert checked_labels(generator, []).dtype == torch.int64
    with pytest.raises(ConfigError, match="temperature"):  # settings are checked all the same
        pipeline.generate_tokens(generator, [], temperature=-1.0)


def test_a_tokenizer_with_fewer_codes_is_refused_before_drawing(models):
    section = TOKENIZER | {"quantizer": {"name": "vq", "codebook_size": 24, "code_dim": 4}}
    with pytest.raises(ValueError, match="makes tokens of 48 codes, but the tokenizer has 24"):
        pipeline.generate(models[0], build_tokenizer(section), [0])


def test_published_settings_travel_with_the_generator(tiny_generator_run, tmp_path):
    model = pipeline.load_image_model(tiny_generator_run)
    generator, labels = pipeline.load_generator(tiny_generator_run), torch.arange(8) % 3
    published = {"guidance_scale": 3.0, "guidance_power": 1.0, "temperature": 1.0}
    assert generator.sampling == model.sampling == published
    expected = pipeline.generate_tokens(generator, labels, **published)
    assert torch.equal(pipeline.generate_tokens(generator, labels), expected)
    assert torch.equal(
        pipeline.generate(model.generator, model.tokenizer, labels),
        pipeline.decode(model.tokenizer, expected),
    )
    # A keyword replaces one setting and leaves the others.
    warm = published | {"temperature": 3.0}
    warmer = pipeline.generate_tokens(generator, labels, temperature=3.0)
    assert torch.equal(warmer, pipeline.generate_tokens(generator, labels, **warm))
    assert not torch.equal(warmer, expected)
    # They are saved with the generator and come back.
    for saved in (generator, copy.deepcopy(generator)):
        again = pipeline.from_pretrained(save_pretrained(saved, tmp_path / "saved"))
        assert again.sampling == published
        assert torch.equal(pipeline.generate_tokens(again, labels), expected)
    save_pretrained(generator, tmp_path / "other", sampling={"temperature": 0.0})
    assert pipeline.load_generator(tmp_path / "other").sampling == {"temperature": 0.0}


def test_wrong_settings_of_a_run_name_its_folder(tiny_generator_run, tmp_path):
    generator = pipeline.load_generator(tiny_generator_run)
    for sampling, message in (
        ({"temprature": 1.0}, "saved: sampling.temprature is not an option .did you mean 'temperature'"),
        (["temperature"], "saved: sampling=.'temperature'. has the wrong type"),
    ):
        save_pretrained(generator, tmp_path / "saved", sampling=sampling)
        with pytest.raises(ConfigError, match=message):
            pipeline.load_generator(tmp_path / "saved")


@pytest.mark.parametrize(
    ("given", "raster", "masked"),
    [
        ({"guidance_scale_pow": 2.75}, "write guidance_power=2.75$", "write guidance_power=2.75$"),
        ({"randomize_temperature": 1.02}, "write temperature=1.02$", "write temperature=1.02$"),
        ({"guidance_decay": "constant"}, "write guidance_power=0$", "write guidance_schedule=constant$"),
        ({"guidance_decay": "power-cosine"}, "leave it out: .* guidance_power$", "schedule=power-cosine$"),
        ({"softmax_temperature_annealing": True}, "leave it out$", "write softmax_annealing=True$"),
        ({"num_sample_steps": 8}, "without effect on this generator.*leave it out$", "write num_steps=8$"),
        ({"cfg_scale": 2.0}, "guidance_scale=2.0, guidance_power=0$", "=1, guidance_schedule=constant$"),
    ],
)
def test_keywords_of_other_programs_get_their_translation(given, raster, masked, models):
    key, value = next(iter(given.items()))
    for generator, message in ((models[0], raster), (filled(lambda: MaskGIT(**BERT_TINY)), masked)):
        with pytest.raises(ConfigError, match=f"^{key}={value} is a keyword of .*{message}"):
            pipeline.generate_tokens(generator, [0], **given)
    with pytest.raises(ConfigError, match=f"^{key}={value} is a keyword of"):
        SampleOptions.translate({"generator": "rar-b", "output": "x", **given})


def test_every_tokenizer_is_here():
    assert {section["name"] for section in SECTIONS.values()} == set(TOKENIZERS)
