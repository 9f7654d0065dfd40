"""Padding of images to the sizes that convolutional tokenizers take."""

import pytest
import torch

from modeling.layers.padding import crop_margins, pad_to_multiple
from tests.parity import golden


def test_margins_are_those_of_the_published_evaluation():
    for height, width, *margins in golden("magvit2_misc")["pad_cases"].tolist():
        padded, found = pad_to_multiple(torch.zeros(1, 1, height, width), 16)
        assert list(found) == margins
        assert padded.shape[-2] % 16 == padded.shape[-1] % 16 == 0


def test_the_border_is_zero_between_minus_one_and_one_and_can_be_removed():
    images = torch.rand(2, 3, 5, 10, generator=torch.Generator().manual_seed(0))
    padded, margins = pad_to_multiple(images, 4)
    assert padded.shape == (2, 3, 8, 12) and margins == (1, 2, 1, 1)
    assert torch.equal(padded[:, :, 1:6, 1:11], images) and torch.equal(crop_margins(padded, margins), images)
    border = 2.0 * padded - 1.0
    border[:, :, 1:6, 1:11] = 0.0
    assert not border.any()


def test_images_that_fit_stay_as_they_are():
    images = torch.rand(1, 3, 8, 16)
    padded, margins = pad_to_multiple(images, 8)
    assert padded is images and not any(margins) and torch.equal(crop_margins(padded, margins), images)
    with pytest.raises(ValueError, match="multiple=0"):
        pad_to_multiple(images, 0)
