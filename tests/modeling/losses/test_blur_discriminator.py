"""Blur discriminator: reference logits for odd sizes, kernels, what it shares with its neighbour."""

import pytest
import torch

from modeling.losses import DISCRIMINATORS
from modeling.losses.blur_discriminator import BlurDiscriminator
from tests.parity import assert_close, fill_module, golden

KERNELS = ("blocks.0.1", "blocks.1.1", "blocks.2.1")


@pytest.mark.parametrize(("reduction", "stored"), [("blur", "blur"), ("average", "avgpool")])
@torch.no_grad()
def test_logits_equal_the_reference(reduction: str, stored: str) -> None:
    data = golden("magvit2_losses")
    model = fill_module(BlurDiscriminator(reduction=reduction), skip=KERNELS)
    images = (torch.from_numpy(data["disc_x"]) + 1) / 2
    assert_close(model(images), data[f"disc_{stored}_logits"], atol=1e-4)
    assert DISCRIMINATORS["blur"] is BlurDiscriminator


def test_names_and_kernels() -> None:
    names = list(BlurDiscriminator(base_channels=32).state_dict())
    assert names[:2] == ["block_in.0.weight", "block_in.0.bias"] and names[-1] == "to_logits.2.bias"
    stage = ["0.weight", "0.bias", "1.kernel", "2.weight", "2.bias"]
    assert [name for name in names if name.startswith("blocks.1")] == [f"blocks.1.{end}" for end in stage]
    assert_close(
        BlurDiscriminator().blocks[0][1].kernel, golden("magvit2_losses")["disc_blur_kernel"], atol=0
    )
    for size in (3, 4, 5):
        model = BlurDiscriminator(base_channels=8, num_stages=1, kernel_size=size)
        kernel = model.blocks[0][1].kernel
        assert kernel.shape == (1, 1, size, size) and kernel.sum().item() == pytest.approx(1.0)
        assert model(torch.rand(1, 3, 9, 12)).shape == (1, 1, 5, 6)


def test_it_stays_in_float32_under_autocast() -> None:
    model, images = BlurDiscriminator(base_channels=32, num_stages=1), torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.float32 and torch.equal(logits, model(images))


@pytest.mark.parametrize(
    ("options", "named"),
    [(dict(reduction="max"), "reduction='max'"), (dict(kernel_size=6), "kernel_size=6")],
)
def test_impossible_options_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BlurDiscriminator(base_channels=8, **options)
