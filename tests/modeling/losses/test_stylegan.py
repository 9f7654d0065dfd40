"""StyleGAN-like discriminator: layout, reference logits, the blur, sizes."""

import pytest
import torch

from modeling.losses import DISCRIMINATORS
from modeling.losses.stylegan import Blur, StyleGANDiscriminator
from tests.parity import assert_close, assert_layout, fill_values, golden


@torch.no_grad()
def test_layout_and_outputs_equal_the_reference() -> None:
    data, model = golden("ut_stylegan_disc_64"), StyleGANDiscriminator(image_size=64)
    assert_layout(model, "llamagen_stylegan_disc_64")
    for name, tensor in model.state_dict().items():
        if not name.endswith(".f"):
            tensor.copy_(fill_values(name, tensor))
    images = (torch.from_numpy(data["x"]) + 1) / 2
    assert_close(model.features(images), data["final_conv"], atol=1e-5)
    assert_close(model(images), data["logits"], atol=1e-5)


def test_blur_keeps_constants_and_spreads_a_point() -> None:
    blur = Blur()
    torch.testing.assert_close(blur(torch.full((1, 2, 4, 4), 3.0)), torch.full((1, 2, 4, 4), 3.0))
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 16.0
    assert blur(point)[0, 0, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_sizes() -> None:
    assert DISCRIMINATORS["stylegan"] is StyleGANDiscriminator
    with torch.device("meta"):
        model = StyleGANDiscriminator(image_size=256, channel_multiplier=2)
    assert model.blocks[0].weight.shape[0] == 128 and len(model.blocks) == 8
    assert [block.conv_res.weight.shape[0] for block in model.blocks[2:]] == [256, 512, 512, 512, 512, 512]
    with pytest.raises(ValueError, match="image_size=4 must"):
        StyleGANDiscriminator(image_size=4)
    with pytest.raises(ValueError, match="channel_multiplier=0"):
        StyleGANDiscriminator(channel_multiplier=0)
    with pytest.raises(ValueError, match="32 x 48, this discriminator needs 8 x 8"):
        StyleGANDiscriminator(image_size=8)(torch.rand(1, 3, 32, 48))
