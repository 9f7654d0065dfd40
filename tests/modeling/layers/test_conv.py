"""Convolution helpers against their defining formulas."""

import pytest
import torch
from torch.nn import functional as F

from modeling.layers.conv import (
    BlurDownsample,
    SameConv2d,
    blocks_to_space,
    conv2d_same,
    depth_to_space,
    same_padding,
    space_to_depth,
)
from tests.parity import golden


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((8, 3), (1, 1)),
        ((8, 5), (2, 2)),
        ((8, 4), (1, 2)),
        ((8, 4, 2), (1, 1)),
        ((7, 4, 2), (1, 2)),
        ((8, 1, 2), (0, 0)),
        ((8, 3, 1, 2), (2, 2)),
    ],
)
def test_same_padding(arguments: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert same_padding(*arguments) == expected


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 1), (7, 4, 2), (9, 4, 1), (6, 4, 2)])
def test_convolution_equals_explicit_padding(size: int, kernel: int, stride: int) -> None:
    x, weight = torch.randn(2, 3, size, size + 1), torch.randn(5, 3, kernel, kernel)
    rows, columns = same_padding(size, kernel, stride), same_padding(size + 1, kernel, stride)
    expected = F.conv2d(F.pad(x, (*columns, *rows)), weight, stride=stride)
    actual = conv2d_same(x, weight, stride=stride)
    torch.testing.assert_close(actual, expected)
    assert actual.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))


def test_stride_one_keeps_the_size() -> None:
    assert SameConv2d(3, 4, 5)(torch.randn(1, 3, 7, 9)).shape == (1, 4, 7, 9)


def test_blur_keeps_a_constant_away_from_the_border_and_works_per_channel() -> None:
    x = torch.ones(1, 2, 9, 8) * torch.tensor([1.0, 3.0])[None, :, None, None]
    blurred = BlurDownsample()(x)
    assert blurred.shape == (1, 2, 5, 4)
    torch.testing.assert_close(blurred[:, :, 1:-1, 1:-1], x[:, :, 1:4, 1:3])


def test_patches_feed_a_linear_map_like_a_strided_convolution() -> None:
    images, weight = torch.randn(2, 3, 8, 12), torch.randn(5, 3, 4, 4)
    expected = F.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(F.linear(space_to_depth(images, 4), weight.flatten(1)), expected)


def test_depth_to_space_order() -> None:
    p, colours, g = 2, 3, 3
    patches = torch.randn(1, g * g, p * p * colours)
    image = depth_to_space(patches, p)
    assert image.shape == (1, colours, g * p, g * p)
    for c, i, j, r, s in [(0, 0, 0, 0, 0), (1, 1, 2, 0, 1), (2, 0, 1, 1, 0), (1, 2, 0, 1, 1)]:
        assert image[0, c, i * p + r, j * p + s] == patches[0, i * g + j, (r * p + s) * colours + c]


def test_blocks_to_space_equals_the_reference() -> None:
    data = golden("magvit2_misc")
    assert (blocks_to_space(torch.from_numpy(data["d2s_in"]), 2).numpy() == data["d2s_out"]).all()
