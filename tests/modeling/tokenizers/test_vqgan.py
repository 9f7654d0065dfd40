"""VQGAN: reference outputs of taming and LlamaGen, layouts, every bottleneck, token shapes."""

import numpy as np
import pytest
import torch

from modeling.factory import build_tokenizer
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.vqgan_formats import VQGAN_FORMATS
from modeling.tokenizers import VQGAN
from modeling.tokenizers.vqgan_parts import PixelDecoder
from tests.parity import assert_close, assert_layout, fill_values, golden, manifest

QUANTIZERS = {
    "vq": {"name": "vq", "codebook_size": 32, "code_dim": 8},
    "cvq": {
        "name": "vq",
        "codebook_size": 32,
        "code_dim": 8,
        "online_clustering": True,
        "distance": "cosine",
    },
    "ema_vq": {"name": "ema_vq", "codebook_size": 32, "code_dim": 8},
    "fsq": {"name": "fsq", "levels": [4, 3, 3]},
    "spherical_vq": {"name": "spherical_vq", "codebook_size": 32, "code_dim": 8},
    "vae": {"name": "vae", "code_dim": 4},
}
SMALL = {
    "name": "vqgan",
    "image_size": 16,
    "base_channels": 32,
    "multipliers": [1, 2],
    "num_blocks": 1,
    "z_channels": 8,
}
TITOK = {
    "name": "titok",
    "image_size": 16,
    "num_latent_tokens": 6,
    **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
       {"patch_size": 4, "hidden_size": 32, "depth": 1, "num_heads": 2}.items()},
}  # fmt: skip


def small(quantizer: str = "vq", **options) -> VQGAN:
    torch.manual_seed(0)
    return build_tokenizer({**SMALL, "quantizer": QUANTIZERS[quantizer], **options})


def released(name: str) -> VQGAN:
    """A released model, its file filled by the names that the file has."""
    release = RELEASES[name]
    with torch.device("meta"):
        model = build_tokenizer(release.section)
    entries = manifest(release.manifest).items()
    state = {entry: fill_values(entry, torch.empty(shape)) for entry, (shape, _) in entries}
    model.load_state_dict(VQGAN_FORMATS[release.format](state), strict=True, assign=True)
    return model.eval()


def tolerance(expected: np.ndarray) -> float:
    return 2e-4 * float(expected.std()) + 1e-5


def images_of(data: dict) -> torch.Tensor:
    return torch.from_numpy(data["image_u8"]).permute(2, 0, 1).float()[None] / 255.0


@torch.no_grad()
def test_taming_outputs_equal_the_reference() -> None:
    data, model = golden("ut_vqgan_f16_16384"), released("taming-vqgan-f16")
    images = images_of(data)
    latents = model.encode_latents(images)
    assert_close(latents[:, :16], data["pre_quant_16"], atol=tolerance(data["pre_quant_16"]))
    mean = data["pre_quant_channel_mean"]
    assert_close(latents.mean(dim=(0, 2, 3)), mean, atol=tolerance(mean))
    output = model(images)
    assert (output.tokens.view(4, 4).numpy() == data["indices"]).all()
    expected = data["reconstruction"]
    assert_close(2 * output.reconstructions - 1, expected, atol=tolerance(expected))
    # The reference's loss has the factor 0.25 on the other term; both terms have the same value.
    assert_close(output.losses["quantizer_loss"], data["legacy_loss"], atol=0, rtol=1e-4)
    decoded = model.decode_latents(
        model.quantize.lookup(torch.from_numpy(data["codes"]).long().view(1, 16)).view(1, 256, 4, 4)
    )
    assert_close(2 * decoded - 1, data["decoded_codes"], atol=tolerance(data["decoded_codes"]))


@pytest.mark.parametrize("name", ["llamagen-vq16", "llamagen-vq8"])
@torch.no_grad()
def test_llamagen_outputs_equal_the_reference(name: str) -> None:
    data, model = golden(f"ut_{name.replace('-', '_')}"), released(name)
    images = images_of(data)
    latents = model.encode_latents(images)
    assert_close(latents, data["pre_quant"], atol=tolerance(data["pre_quant"]))
    output = model(images)
    assert (output.tokens.view(4, 6).numpy() == data["indices"]).all()
    assert torch.equal(model.encode(images), output.tokens)
    assert_close(output.quantized, data["quantized"], atol=tolerance(data["quantized"]))
    expected = data["reconstruction"]
    assert_close(2 * output.reconstructions - 1, expected, atol=tolerance(expected))
    codes = torch.from_numpy(data["codes"]).long().view(1, 4, 6)
    expected = data["decoded_codes"]
    decoded = model.decode(codes)
    assert_close(decoded, ((expected + 1) / 2).clip(0, 1), atol=tolerance(expected))


def test_released_layout_is_that_of_taming() -> None:
    with torch.device("meta"):
        assert_layout(build_tokenizer(RELEASES["taming-vqgan-f16"].section), "taming_vqgan_f16_16384")


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_bottleneck_fits_and_trains(quantizer: str) -> None:
    model, images = small(quantizer), torch.rand(2, 3, 16, 16)
    output = model(images)
    assert output.reconstructions.shape == images.shape
    loss = (output.reconstructions - images).square().mean()
    (loss + sum(v for k, v in output.losses.items() if k in ("quantizer_loss", "kl_loss"))).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert ("quantize.embedding.weight" in trained) == (quantizer in ("vq", "cvq"))

    model.eval()
    found = model.encode(images)
    assert found.shape == ((2, 64) if model.is_discrete else (2, 4, 1, 64))
    restored = model(images).reconstructions.clamp(0, 1)
    torch.testing.assert_close(model.decode(found), restored, atol=1e-5, rtol=0)
    if model.is_discrete:
        assert model.bits_per_image == 64 * model.quantize.bits_per_token
        assert found.dtype == torch.int64 and int(found.max()) < model.codebook_size
    else:
        assert model.bits_per_image is None
        shifted = model(images, torch.ones(2, 4, 1, 64))
        expected = shifted.posterior.mean + shifted.posterior.std
        torch.testing.assert_close(shifted.quantized, expected)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_titok_takes_the_same_sections(quantizer: str) -> None:
    torch.manual_seed(0)
    model = build_tokenizer({**TITOK, "quantizer": QUANTIZERS[quantizer]})
    images = torch.rand(2, 3, 16, 16)
    model(images).reconstructions.mean().backward()
    assert model.encoder.patch_embed.weight.grad.abs().sum() > 0
    model.eval()
    decoded, restored = model.decode(model.encode(images)), model(images).reconstructions
    torch.testing.assert_close(decoded, restored, atol=1e-5, rtol=0)


def test_tokens_are_row_major_and_sides_may_differ() -> None:
    model, images = small().eval(), torch.rand(1, 3, 16, 24)
    tokens = model.encode(images)
    assert tokens.shape == (1, 96)
    latents = model.encode_latents(images)
    assert torch.equal(model.quantize.encode(latents[:, :, :1]), tokens[:, :12])
    assert model.decode(tokens.view(1, 8, 12)).shape == images.shape
    with pytest.raises(ValueError, match="96 tokens do not form a square"):
        model.decode(tokens)


def test_bypassed_images_skip_the_codes() -> None:
    model, images = small().eval(), torch.rand(2, 3, 16, 16)
    output = model(images, bypass=torch.tensor([True, False]))
    torch.testing.assert_close(output.quantized[0], model.encode_latents(images)[0])
    torch.testing.assert_close(output.quantized[1], model(images).quantized[1])
    assert not torch.allclose(output.quantized[1], model.encode_latents(images)[1], atol=1e-2)


def test_options_shape_the_network() -> None:
    names = set(small().state_dict())
    assert {
        "encoder.down.1.attn.0.q.weight",
        "decoder.up.1.attn.1.q.weight",
        "decoder.mid.attn_1.q.weight",
    } <= names
    bare = set(small(attention_levels=[], middle=False, connector_widths=None, decoder_blocks=1).state_dict())
    assert not [n for n in bare if "attn" in n or "mid" in n or "quant_conv" in n or ".block.1." in n]
    chain = small("fsq", connector_widths=[12, 6])
    shapes = [list(p.shape[:2]) for n, p in chain.named_parameters() if "quant_conv" in n and p.ndim == 4]
    assert shapes == [[12, 8], [6, 12], [3, 6], [6, 3], [12, 6], [8, 12]]
    assert chain.last_layer is chain.decoder.conv_out.weight


def test_pixel_decoder_is_the_decoder_with_a_connector() -> None:
    model = small().eval()
    options = dict(base_channels=32, multipliers=(1, 2), num_blocks=2, z_channels=8)
    decoder = PixelDecoder(in_channels=8, **options)
    state = {k: v for k, v in model.state_dict().items() if k.startswith(("decoder.", "post_quant_conv."))}
    decoder.load_state_dict(state)
    codes = torch.randn(1, 8, 3, 5)
    torch.testing.assert_close(decoder(codes), model.decode_latents(codes))
    assert decoder(codes).shape == (1, 3, 3 * decoder.upscale, 5 * decoder.upscale)
    assert decoder.last_layer is decoder.decoder.conv_out.weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(base_channels=48), "base_channels=48"),
        (dict(image_size=15), "image_size=15"),
        (dict(multipliers=[]), "multipliers"),
        (dict(attention_levels=[2]), r"attention_levels=\[2\]"),
        (dict(num_blocks=0), "num_blocks=0"),
        (dict(connector_widths=None, z_channels=16), "connector_widths=null"),
        (dict(connector_width=[3]), "connector_widths"),
    ],
)
def test_impossible_sizes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        small().encode(torch.rand(1, 3, 15, 16))
    with pytest.raises(TypeError, match="unexpected keyword argument 'noise'"):
        small()(torch.rand(1, 3, 16, 16), torch.zeros(1, 8, 1, 64))
