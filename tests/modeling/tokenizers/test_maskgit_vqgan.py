"""MaskGIT-VQGAN: released layout, reference outputs, token shapes."""

import pytest
import torch

from modeling.tokenizers import MaskGITVQGAN
from tests.parity import (
    assert_close,
    assert_images_close,
    assert_layout,
    assert_tokens_match,
    filled,
    golden,
    image_pair,
)


def small() -> MaskGITVQGAN:
    return MaskGITVQGAN(
        image_size=32, base_channels=32, multipliers=(1, 2), num_blocks=1, codebook_size=16, code_dim=8
    )


def test_state_dict_layout() -> None:
    with torch.device("meta"):
        assert_layout(MaskGITVQGAN(), "maskgit_vqgan")


@torch.no_grad()
def test_outputs_equal_the_reference() -> None:
    data = golden("maskgit_vqgan")
    model = filled(MaskGITVQGAN)
    images = image_pair(data)
    latents = model.encoder(images)
    assert_close(latents[:, ::8], data["latent_every8"], atol=5e-4)
    result = model.quantize(latents)
    assert_tokens_match(result.tokens, data["indices"], data["margin"])
    assert_close(result.losses["quantizer_loss"], data["quantizer_loss"], atol=0, rtol=1e-4)
    codes = torch.from_numpy(data["codes_fixed"]).long()
    raw = model.decoder(model.quantize.lookup(codes).unflatten(3, (16, 16)).squeeze(2))
    assert_images_close(raw, data, "recon_raw", atol=5e-4)
    decoded = model.decode(codes.view(2, 16, 16))
    assert_images_close(decoded, data, "recon_clamped", atol=5e-4)
    assert torch.equal(decoded, raw.clamp(0, 1))


def test_tokens_round_trip_through_flat_and_square_forms() -> None:
    model = small()
    images = torch.rand(2, 3, 32, 32)
    tokens = model.encode(images)
    assert tokens.shape == (2, model.num_tokens) == (2, 256) and model.bits_per_image == 1024
    assert torch.equal(model.decode(tokens), model.decode(tokens.view(2, 16, 16)))
    output = model(images)
    assert torch.equal(output.tokens, tokens)
    torch.testing.assert_close(output.reconstructions.clamp(0, 1), model.decode(tokens), atol=1e-5, rtol=1e-5)
    (output.reconstructions.square().mean() + output.losses["quantizer_loss"]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_loss_puts_the_commitment_factor_on_the_codebook() -> None:
    model = small()
    features = torch.randn(1, 8, 2, 2, requires_grad=True)
    result = model.quantize(features)
    codes = model.quantize.lookup(result.tokens).view(1, 8, 2, 2)
    distance = (codes - features).square().mean()
    torch.testing.assert_close(result.losses["quantizer_loss"], 1.25 * distance)
    result.losses["quantizer_loss"].backward()
    torch.testing.assert_close(features.grad, 2 * (features - codes).detach() / features.numel())


def test_images_of_any_size_and_a_soft_start_as_of_other_convolutional_tokenizers() -> None:
    model, images = small(), torch.rand(2, 3, 16, 24)
    assert model.encode(images).shape == (2, 8 * 12) and model.last_layer is model.decoder.conv_out.weight
    output = model(images, bypass=torch.tensor([True, False]))
    assert torch.equal(output.quantized[0], model.encode_latents(images)[0])
    codes = model.quantize.lookup(output.tokens).view_as(output.quantized)
    torch.testing.assert_close(output.quantized[1], codes[1])
    with pytest.raises(ValueError, match="multiples of 2"):
        model.encode(torch.rand(1, 3, 16, 15))


def test_errors() -> None:
    with pytest.raises(ValueError, match="do not form a square"):
        small().decode(torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="base_channels=48"):
        MaskGITVQGAN(base_channels=48)
    with pytest.raises(ValueError, match="image_size=100"):
        MaskGITVQGAN(image_size=100)
