"""Models cast to bfloat16 or float16 (`.bfloat16()`, `.half()`) encode, decode and sample, close to float32."""

import copy
import importlib.util

import pytest
import torch

from common.config import REPOSITORY, read_yaml
from modeling.factory import build_generator, build_tokenizer
from modeling.generators import GENERATORS
from modeling.pipeline import decode, encode, generate_tokens, load_image_model, load_tokenizer, reconstruct
from modeling.quantizers import QUANTIZERS
from modeling.tokenizers import TOKENIZERS
from modeling.tokenizers.sub_tokens import SubTokenView
from storage.weights import weight_hash
from tests.integration.test_any_pair import TOKENIZERS as TINY
from tests.parity import fill_module

TWINS = {path.stem: read_yaml(path) for path in sorted((REPOSITORY / "configs/debug").glob("*.yaml"))}
VQGAN = TINY["vqgan"]
SECTIONS = {
    **TINY,
    **{
        f"vqgan {name}": VQGAN | {"quantizer": {"name": name, "codebook_size": 24, "code_dim": 8}}
        for name in ("ema_vq",)
    },
    "vqgan gaussian": VQGAN | {"quantizer": {"name": "vae", "code_dim": 8}},
    "vqkd": {key: value for key, value in TINY["vqkd with pixels"].items() if key != "pixel_decoder"},
    **{f"twin {name}": TWINS[name]["tokenizer"] for name in ("tatitok_vq", "tatitok_vae", "titok_stage1")},
}
HALVES = [torch.bfloat16, torch.float16]


def test_every_tokenizer_quantizer_and_generator_is_here():
    tokenizers = {section["name"] for section in SECTIONS.values()}
    quantizers = {section["quantizer"]["name"] for section in SECTIONS.values() if "quantizer" in section}
    assert tokenizers == set(TOKENIZERS) and quantizers == set(QUANTIZERS)
    assert set(GENERATORS) <= set(TWINS)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", SECTIONS)
def test_tokenizers_encode_and_decode(name, dtype):
    if "cluster" in name and not importlib.util.find_spec("timm"):
        pytest.skip("needs timm")
    exact = fill_module(build_tokenizer(SECTIONS[name])).eval()
    half = copy.deepcopy(exact).to(dtype)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, exact.image_size, exact.image_size, generator=random)  # float32, as always
    options = {}
    if exact.needs_text:
        options["text"] = torch.randn(4, exact.text_length, exact.text_width, generator=random)
    tokens, found = encode(exact, images), encode(half, images)
    assert found.dtype == tokens.dtype
    if exact.is_discrete:
        assert (found == tokens).float().mean() > 0.9
    else:
        torch.testing.assert_close(found, tokens, rtol=0.02, atol=0.05)
    expected, decoded = decode(exact, tokens, **options), decode(half, tokens, **options)
    assert decoded.dtype == torch.float32
    assert (decoded - expected).abs().mean() < 0.05 * expected.std()
    with torch.no_grad():
        output = half(images, **options)
    assert output.reconstructions.isfinite().all() and output.reconstructions.dtype == dtype


def test_views_of_tokenizers():
    exact = fill_module(build_tokenizer(TINY["titok bsq"])).eval()
    view = SubTokenView(tokenizer=exact, factors=[8, 8]).bfloat16()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert reconstruct(view, images).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_generators_predict_and_sample(name, dtype):
    sizes = {"codebook_size": 64, "num_tokens": 16, "num_classes": 10}
    exact = fill_module(build_generator({**sizes, **TWINS[name]["generator"]})).eval()
    half = copy.deepcopy(exact).to(dtype)
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 3, 9])
    tokens = torch.randint(0, 64, (3, 16), generator=random)
    with torch.no_grad():
        pairs = [exact(tokens, labels), half(tokens, labels)]
    for expected, logits in zip(
        *(pair if isinstance(pair, tuple) else (pair,) for pair in pairs), strict=True
    ):
        assert logits.dtype == dtype and logits.isfinite().all()
        assert (logits.float() - expected).abs().mean() < 0.05 * expected.std()
    drawn = generate_tokens(half, labels, seed=1, temperature=1.0, guidance_scale=2.0)
    assert drawn.shape == (3, 16) and drawn.min() >= 0 and drawn.max() < 64
    same = drawn == generate_tokens(exact, labels, seed=1, temperature=1.0, guidance_scale=2.0)
    assert same.float().mean() > 0.5  # a first difference changes what follows


def test_loaders_cast_and_keep_the_hash_of_the_stored_weights(tiny_tokenizer_run, tiny_generator_run):
    exact = load_image_model(tiny_generator_run)
    half = load_image_model(tiny_generator_run, precision="bfloat16")
    for part in ("generator", "tokenizer"):
        one, two = getattr(exact, part), getattr(half, part)
        assert {p.dtype for p in two.parameters()} == {torch.bfloat16}
        assert weight_hash(one) == weight_hash(two) != weight_hash(copy.deepcopy(one).bfloat16())
    with pytest.raises(ValueError, match="precision='half' is unknown; choose float32, bfloat16, float16"):
        load_tokenizer(tiny_tokenizer_run, precision="half")
