"""TiTok: released layouts, reference outputs, initialisation, freezing, errors."""

import pytest
import torch
from torch import nn

from modeling.quantizers import GaussianQuantizer, VectorQuantizer
from modeling.tokenizers import MaskGITVQGAN, TiTok
from tests.parity import (
    assert_close,
    assert_images_close,
    assert_layout,
    assert_tokens_match,
    filled,
    golden,
    image_pair,
)

SIZES = {"s": (512, 8, 8), "b": (768, 12, 12), "l": (1024, 24, 16)}
RELEASED = {
    "titok_s128": 83.675,
    "titok_b64": 204.814,
    "titok_l32": 641.055,
    "titok_s128_stage1": 52.934,
    "titok_b64_stage1": 174.074,
    "titok_l32_stage1": 610.314,
    "titok_bl64_vq8k": 390.016,
    "titok_bl128_vq8k": 390.180,
    "titok_sl256_vq8k": 330.261,
    "titok_ll32_vae_c16": 606.880,
    "titok_bl64_vae_c16": 389.418,
    "titok_bl128_vae_c16": 389.582,
}


def released(name: str) -> TiTok:
    """The released model `name`: sizes and tokens are spelled in it."""
    variant = name.split("_")[1]
    letters, num_latent_tokens = variant.rstrip("0123456789"), int(variant.lstrip("sbl"))
    encoder, decoder = SIZES[letters[0]], SIZES[letters[-1]]
    if "vae" in name:
        quantizer, layout = GaussianQuantizer(code_dim=16), "single_stage"
    elif "vq8k" in name:
        quantizer, layout = VectorQuantizer(codebook_size=8192, code_dim=64), "single_stage"
    else:
        quantizer = VectorQuantizer(codebook_size=4096, code_dim=12, use_l2_norm=True)
        layout = "proxy" if "stage1" in name else "two_stage"
    return TiTok(
        quantizer=quantizer,
        image_size=256,
        num_latent_tokens=num_latent_tokens,
        encoder_hidden_size=encoder[0],
        encoder_depth=encoder[1],
        encoder_num_heads=encoder[2],
        decoder_hidden_size=decoder[0],
        decoder_depth=decoder[1],
        decoder_num_heads=decoder[2],
        encoder_patch_size=16,
        decoder_patch_size=16,
        layout=layout,
    )


def small(quantizer: nn.Module | None = None, **options) -> TiTok:
    """A model for 32x32 images, with a different width and patch in encoder and decoder."""
    defaults = dict(
        quantizer=quantizer or VectorQuantizer(codebook_size=32, code_dim=6),
        image_size=32,
        num_latent_tokens=5,
        encoder_hidden_size=32,
        encoder_depth=2,
        encoder_num_heads=2,
        decoder_hidden_size=48,
        decoder_depth=2,
        decoder_num_heads=3,
        encoder_patch_size=8,
        decoder_patch_size=16,
    )
    return TiTok(**{**defaults, **options})


def small_two_stage() -> TiTok:
    return small(layout="two_stage", pixel_decoder_channels=32, proxy_codebook_size=64, proxy_code_dim=16)


@pytest.mark.parametrize("name", RELEASED)
def test_state_dict_layout_and_size_of_released_models(name: str) -> None:
    with torch.device("meta"):
        model = released(name)
    assert_layout(model, name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(RELEASED[name], abs=5e-4)


@torch.no_grad()
def test_two_stage_outputs_equal_the_reference() -> None:
    data = golden("titok_s128")
    model = filled(lambda: released("titok_s128"))
    images = image_pair(data)
    latents = model.encode_latents(images)
    assert_close(latents, data["z"], atol=1e-4, rtol=1e-4)
    assert_close(latents[0] - latents[1], data["z"][0] - data["z"][1], atol=1e-4)
    output = model(images)
    assert_tokens_match(output.tokens, data["indices"], data["margin"])
    assert_close(output.quantized, data["z_quantized"], atol=1e-4)
    for name in ("quantizer_loss", "commitment_loss", "codebook_loss"):
        assert_close(output.losses[name], data[f"encode_{name}"], atol=0)
    assert_images_close(output.reconstructions, data, "recon_encoded", atol=5e-4)
    tokens = torch.from_numpy(data["tokens_fixed"]).long()
    logits = model.decoder(model.quantize.lookup(tokens))
    assert_close(logits[:, ::32], data["decoder_logits_every32"], atol=1e-4, rtol=1e-4)
    assert_images_close(model.decode(tokens[:, None]), data, "recon_fixed", atol=5e-4)


@torch.no_grad()
def test_single_stage_vae_outputs_equal_the_reference() -> None:
    data = golden("titok_bl64_vae_c16")
    model = filled(lambda: released("titok_bl64_vae_c16"))
    output = model(image_pair(data))
    for name in ("mean", "logvar", "std"):
        value = getattr(output.posterior, name)
        assert_close(value, data[name], atol=1e-4, rtol=1e-4)
        assert_close(value[0] - value[1], data[name][0] - data[name][1], atol=1e-4)
    assert_close(output.posterior.kl(), data["kl"], atol=1e-4, rtol=1e-4)
    assert_images_close(output.reconstructions, data, "recon_mode", atol=1e-4)
    assert_images_close(model.decode(torch.from_numpy(data["z_fixed"])), data, "recon_fixed", atol=1e-4)


@pytest.mark.parametrize("layout", ["single_stage", "proxy", "two_stage"])
def test_encode_decode_and_forward_agree(layout: str) -> None:
    model = (small_two_stage() if layout == "two_stage" else small(layout=layout)).eval()
    images = torch.rand(3, 3, 32, 32)
    output = model(images)
    tokens = model.encode(images)
    assert torch.equal(tokens, output.tokens) and tokens.shape == (3, 5)
    torch.testing.assert_close(model.decode(tokens), output.reconstructions, atol=1e-4, rtol=1e-4)
    assert output.reconstructions.shape == ((3, 1024, 2, 2) if layout == "proxy" else (3, 3, 32, 32))
    assert model.predicts_pixels == (layout != "proxy")
    assert (model.num_tokens, model.codebook_size, model.bits_per_image) == (
        5,
        32,
        25.0,
    ) and model.is_discrete


def test_variational_bottleneck() -> None:
    model = small(GaussianQuantizer(code_dim=4))
    images, noise = torch.rand(2, 3, 32, 32), torch.randn(2, 4, 1, 5)
    output = model(images, noise)
    torch.testing.assert_close(output.quantized, output.posterior.sample(noise))
    latents = model.encode(images)
    torch.testing.assert_close(latents, output.posterior.mode())
    torch.testing.assert_close(model.eval()(images).reconstructions, model.decode(latents))
    assert not model.is_discrete and model.bits_per_image is None and output.tokens is None


@pytest.mark.parametrize("layout", ["single_stage", "proxy"])
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(layout: str) -> None:
    images = torch.rand(2, 3, 32, 32)
    plain = small(layout=layout)
    recomputed = small(layout=layout, activation_checkpointing=True)
    recomputed.load_state_dict(plain.state_dict())
    for model in (plain, recomputed):
        output = model(images)
        (output.reconstructions.square().mean() + output.losses["quantizer_loss"]).backward()
    for (name, one), two in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None and one.grad.abs().sum() > 0, name
        torch.testing.assert_close(two.grad, one.grad, msg=name)


def test_two_stage_trains_the_decoder_side_only() -> None:
    model = small_two_stage().train()
    assert not model.encoder.training and not model.quantize.training and model.decoder.training
    output = model(torch.rand(1, 3, 32, 32))
    output.reconstructions.square().mean().backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"decoder", "pixel_quantize", "pixel_decoder"}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(loss == 0 for loss in output.losses.values())


def test_pixel_decoder_starts_from_a_trained_vqgan() -> None:
    vqgan = MaskGITVQGAN(image_size=32, base_channels=32, codebook_size=64, code_dim=16)
    model = small_two_stage()
    model.copy_teacher(vqgan)
    tokens = torch.randint(64, (2, 4))
    logits = 1e4 * nn.functional.one_hot(tokens, 64).float().transpose(1, 2).unflatten(2, (2, 2))
    images = model.pixel_decoder(model.pixel_quantize.mix(logits)).clamp(0, 1)
    torch.testing.assert_close(images, vqgan.decode(tokens))
    with pytest.raises(ValueError, match="is a TiTok"):
        model.copy_teacher(small())
    with pytest.raises(ValueError, match="two_stage"):
        small().copy_teacher(vqgan)


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = small(encoder_hidden_size=128, decoder_hidden_size=192, encoder_num_heads=2)
    state = model.state_dict()
    for name, value in state.items():
        if "embedding" in name and "quantize" not in name or name.endswith(("mask_token", "latent_tokens")):
            assert value.std().item() == pytest.approx(value.shape[-1] ** -0.5, rel=0.25), name
        elif name.endswith("in_proj_weight"):
            bound = (6 / (value.shape[0] + value.shape[1])) ** 0.5  # Xavier uniform
            assert value.abs().max() <= bound and value.std().item() == pytest.approx(
                bound / 3**0.5, rel=0.02
            ), name
        elif name.endswith("bias"):
            assert not value.any(), name
        elif "ln_" in name:
            assert (value == 1).all(), name
        elif "conv_out" not in name and "quantize" not in name:
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name
    assert state["encoder.conv_out.weight"].std().item() == pytest.approx(0.02, rel=0.15)
    assert state["quantize.embedding.weight"].abs().max() <= 1 / 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(layout="legacy"), "layout='legacy' is unknown; choose one of"),
        (dict(encoder_patch_size=7), "image_size=32 must be a multiple of the patch size 7"),
        (dict(encoder_num_heads=5), "hidden_size=32 must be a multiple of num_heads=5"),
        (dict(num_latent_tokens=0), "num_latent_tokens=0"),
        (dict(decoder_depth=0), "depth=0"),
        (dict(layout="two_stage", decoder_patch_size=8), "decoder_patch_size=8 must be 16"),
        (dict(layout="two_stage", pixel_decoder_channels=48), "multiple of 32"),
        (dict(layout="two_stage", quantizer=GaussianQuantizer(code_dim=4)), "Gaussian"),
        (dict(layout="proxy", quantizer=GaussianQuantizer(code_dim=4)), "Gaussian"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_wrong_input_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\].*64"):
        small()(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"int64 \[1, 6\], expected integers \[B, 5\]"):
        small().decode(torch.zeros(1, 6, dtype=torch.int64))
