"""The tokenizer of Open-MAGVIT2: reference outputs, released layouts, every bottleneck, sizes."""

import json

import numpy as np
import pytest
import torch

from modeling.factory import build_tokenizer
from modeling.token_factors import TokenFactors
from modeling.tokenizers import MAGVIT2
from modeling.tokenizers.magvit2_parts import AdaptiveGroupNorm
from tests.modeling.tokenizers.test_vqgan import QUANTIZERS
from tests.parity import ROOT, assert_close, fill_module, filled, golden, state_layout

RELEASED = {
    "256": {},
    "128": {"image_size": 128, "multipliers": [1, 2, 2, 4]},
    "pretrain_256_262144": {},
    "pretrain_256_16384": {"quantizer": {"name": "lfq", "bits": 14}},
}
BOTTLENECKS = {**QUANTIZERS, "lfq": {"name": "lfq", "bits": 6}, "bsq": {"name": "bsq", "bits": 6}}
SMALL = {
    "name": "magvit2",
    "image_size": 16,
    "base_channels": 32,
    "multipliers": [1, 2],
    "num_blocks": 1,
}


def small(quantizer: str = "lfq", **options) -> MAGVIT2:
    torch.manual_seed(0)
    return build_tokenizer({**SMALL, "quantizer": BOTTLENECKS[quantizer], **options})


def section(name: str) -> dict:
    return {"name": "magvit2", "quantizer": {"name": "lfq"}, **RELEASED[name]}


@pytest.mark.parametrize("name", RELEASED)
def test_layout_is_that_of_the_released_files(name: str) -> None:
    with torch.device("meta"):
        model = build_tokenizer(section(name))
    expected = json.loads((ROOT / "manifests" / f"magvit2_tokenizer_{name}.json").read_text())
    assert list(state_layout(model).items()) == list(expected["model"].items())
    assert sum(p.numel() for p in model.parameters()) == expected["model_numel"]
    assert model.num_tokens == 256 and model.downscale == (8 if name == "128" else 16)
    assert model.bits_per_image == 256 * (14 if name.endswith("16384") else 18)


@pytest.fixture(scope="module")
def released() -> MAGVIT2:
    return filled(lambda: build_tokenizer(section("256")))


@pytest.mark.parametrize("tag", ["b", pytest.param("a", marks=pytest.mark.slow)])
@torch.no_grad()
def test_outputs_equal_the_reference(released: MAGVIT2, tag: str) -> None:
    data = {k.removeprefix(f"{tag}_"): v for k, v in golden("magvit2_tokenizer_256").items()}
    images = torch.from_numpy(data["image_u8"]).permute(0, 3, 1, 2).float() / 255.0
    latents = released.encode_latents(images)
    assert_close(latents, data["encoder_out"], atol=1e-4)
    assert_statistics(latents, data["encoder_stats"])

    rows = latents.flatten(2).transpose(1, 2)
    bits = np.unpackbits(data["bits"], axis=-1, bitorder="little")[..., :18]
    clear = (rows.abs() > 1e-4).numpy()
    assert ((rows > 0).numpy() == bits)[clear].all() and clear.mean() > 0.99
    sure = clear.all(axis=-1)
    tokens = released.encode(images)
    assert torch.equal(tokens, released.quantize.encode(latents))
    sub_tokens = TokenFactors((64, 4096)).split(tokens)
    for found, key in (
        (tokens, "indices"),
        (sub_tokens[..., 0], "indices_pre"),
        (sub_tokens[..., 1], "indices_post"),
    ):
        assert (found.numpy() == data[key])[sure].all()

    stored = torch.from_numpy(bits.astype(np.int64) << np.arange(18)).sum(dim=-1)
    codes = released.quantize.lookup(stored)
    assert torch.equal(codes[:, :, 0].transpose(1, 2) > 0, torch.from_numpy(bits).bool())
    decoded = 2 * released.decode_latents(codes.view(latents.shape)) - 1
    step = 4 if tag == "a" else 2
    assert_close(decoded[:, :, ::step, ::step], data["decoder_sub"], atol=2e-4)
    assert_close(decoded[:, :, 8:24, 8:24], data["decoder_patch"], atol=2e-4)
    assert_statistics(decoded, data["decoder_stats"])
    images = released.decode(stored.view(latents.shape[0], *latents.shape[2:]))
    torch.testing.assert_close(images, ((decoded + 1) / 2).clamp(0, 1))


def assert_statistics(tensor: torch.Tensor, expected: np.ndarray) -> None:
    """Mean, unbiased standard deviation, largest and mean size."""
    x = tensor.double()
    assert_close(torch.stack([x.mean(), x.std(), x.abs().max(), x.abs().mean()]), expected, atol=1e-4)


def test_adaptive_normalisation_equals_the_reference() -> None:
    data = golden("magvit2_misc")
    norm = fill_module(AdaptiveGroupNorm(64, 18))
    x, codes = torch.from_numpy(data["agn_x"]), torch.from_numpy(data["agn_z"]).float()
    assert_close(norm(x, codes), data["agn_y"], atol=1e-5)


def test_codes_of_one_position_have_no_deviation() -> None:
    norm, x, codes = fill_module(AdaptiveGroupNorm(32, 4)), torch.randn(2, 32, 4, 4), torch.randn(2, 4, 1, 1)
    expected = norm(x, codes)
    assert torch.isfinite(expected).all()
    same = codes.expand(-1, -1, 2, 2)  # equal codes deviate by nothing either
    torch.testing.assert_close(norm(x, same), expected)
    model = small(image_size=2, base_channels=64).eval()
    assert model.num_tokens == 1 and torch.isfinite(model(torch.rand(1, 3, 2, 2)).reconstructions).all()


@pytest.mark.parametrize("quantizer", BOTTLENECKS)
def test_every_bottleneck_fits_and_trains(quantizer: str) -> None:
    model, images = small(quantizer), torch.rand(2, 3, 16, 16)
    output = model(images)
    assert output.reconstructions.shape == images.shape
    loss = (output.reconstructions - images).square().mean()
    (loss + sum(v for k, v in output.losses.items() if k in ("quantizer_loss", "kl_loss"))).backward()
    assert {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None} == set()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.decoder.adaptive[1].gamma.weight.grad.abs().sum() > 0

    model.eval()
    found = model.encode(images)
    assert found.shape == ((2, 64) if model.is_discrete else (2, 4, 1, 64))
    restored = model(images).reconstructions.clamp(0, 1)
    torch.testing.assert_close(model.decode(found), restored, atol=1e-5, rtol=0)
    assert model.bits_per_image == (64 * model.quantize.bits_per_token if model.is_discrete else None)


def test_sides_may_differ_and_images_may_skip_the_codes() -> None:
    model, images = small().eval(), torch.rand(2, 3, 16, 24)
    tokens = model.encode(images)
    assert tokens.shape == (2, 96) and model.decode(tokens.view(2, 8, 12)).shape == images.shape
    with pytest.raises(ValueError, match="96 tokens do not form a square"):
        model.decode(tokens)
    output = model(images, bypass=torch.tensor([True, False]))
    torch.testing.assert_close(output.quantized[0], model.encode_latents(images)[0])
    assert set(output.quantized[1].unique().tolist()) == {-1.0, 1.0}
    assert model.last_layer is model.decoder.conv_out.weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(base_channels=48), "base_channels=48"),
        (dict(image_size=15), "image_size=15 must be a multiple of 2"),
        (dict(multipliers=[]), r"multipliers=\[\]"),
        (dict(multipliers=[1, 0]), r"multipliers=\[1, 0\]"),
        (dict(num_blocks=0), "num_blocks=0"),
        (dict(num_block=1), "num_blocks"),
    ],
)
def test_impossible_sizes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
    with pytest.raises(ValueError, match="multiples of 2"):
        small().encode(torch.rand(1, 3, 15, 16))
