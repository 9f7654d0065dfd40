"""Pixel and proxy-code losses against hand-computed values and gradients."""

import math

import pytest
import torch

from modeling.losses.reconstruction import RECONSTRUCTION_LOSSES, proxy_cross_entropy


def test_pixel_losses() -> None:
    images = torch.tensor([[0.0, 1.0]])
    reconstructions = torch.tensor([[0.5, -1.0]], requires_grad=True)
    loss = RECONSTRUCTION_LOSSES["l1"](images, reconstructions)
    assert loss.item() == 1.25
    assert torch.autograd.grad(loss, reconstructions)[0].tolist() == [[0.5, -0.5]]
    loss = RECONSTRUCTION_LOSSES["l2"](images, reconstructions)
    assert loss.item() == 2.125
    assert torch.autograd.grad(loss, reconstructions)[0].tolist() == [[0.5, -2.0]]


def test_proxy_cross_entropy_reads_codes_row_major() -> None:
    codes = torch.tensor([[0, 1, 2, 3, 4, 0]])
    logits = torch.zeros(1, 5, 2, 3)
    assert proxy_cross_entropy(logits, codes).item() == pytest.approx(math.log(5))
    for position, code in enumerate(codes[0]):
        logits[0, code, position // 3, position % 3] = 50.0
    assert proxy_cross_entropy(logits.bfloat16(), codes).item() == pytest.approx(0.0, abs=1e-6)
