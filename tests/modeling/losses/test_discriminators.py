"""Patch discriminator: layout, reference logits and gradient, small images."""

import pytest
import torch

from modeling.losses import DISCRIMINATORS
from modeling.losses.discriminators import NLayerDiscriminator
from tests.parity import assert_close, assert_layout, fill_module, golden, image_pair

KERNELS = ("blocks.0.1", "blocks.1.1", "blocks.2.1")


def test_state_dict_layout() -> None:
    assert_layout(NLayerDiscriminator(), "nlayer_discriminator")
    assert DISCRIMINATORS["nlayer"] is NLayerDiscriminator


def test_logits_and_gradient_equal_the_reference() -> None:
    data = golden("nlayer_discriminator")
    model = fill_module(NLayerDiscriminator(), skip=KERNELS)
    assert_close(model.blocks[0][1].kernel, data["blur_kernel"], atol=0)
    images = image_pair(data).requires_grad_()
    logits = model(images)
    assert_close(logits, data["logits"], atol=1e-4, rtol=1e-4)
    assert_close(logits[0] - logits[1], data["logits"][0] - data["logits"][1], atol=1e-4)
    logits.mean().backward()
    assert_close(images.grad[:1, :, ::4, ::4], data["grad_x_every4"], atol=1e-7, rtol=1e-4)
    with torch.no_grad():  # odd intermediate sizes, and a map smaller than the pooled one
        assert_close(model(images[:, :, 40:140, 30:160]), data["logits_100x130"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("pooled_size", "side"), [(16, 16), (4, 4), (None, 8)])
def test_small_images_and_widths(pooled_size: int | None, side: int) -> None:
    model = NLayerDiscriminator(base_channels=24, num_stages=2, pooled_size=pooled_size)
    logits = model(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 1, side, side)
    logits.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("options", [dict(base_channels=0), dict(num_stages=0), dict(pooled_size=0)])
def test_impossible_sizes_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=0"):
        NLayerDiscriminator(**options)


def test_it_stays_in_float32_under_autocast():
    model, images = NLayerDiscriminator(base_channels=32, num_stages=1), torch.rand(2, 3, 16, 16)
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
