import math

import numpy as np
import pytest
import torch

from evaluator import image_quality
from evaluator.image_quality import ImageQuality


def batch(count: int, side: int = 16) -> torch.Tensor:
    levels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(count))
    return levels.float() / 255


def test_psnr_is_ten_log_one_over_the_mean_squared_error():
    images = torch.zeros(2, 3, 16, 16)
    wrong = images.clone()
    wrong[0] += 51 / 255
    wrong[1, :, :8] += 102 / 255  # half of the pixels, twice as wrong
    quality = ImageQuality()
    psnr = quality.update(images, wrong)
    expected = [-10 * math.log10(0.2**2), -10 * math.log10(0.4**2 / 2)]
    assert psnr.tolist() == pytest.approx(expected, abs=1e-4)
    measured = quality.result()
    # The mean of the images' values, not the value of the mean error.
    assert measured["psnr"] == pytest.approx(sum(expected) / 2, abs=1e-4) and measured["images"] == 2


def ssim(one: np.ndarray, two: np.ndarray) -> float:
    """Formula of Wang et al. 2004: 11 x 11 Gaussian window, sigma 1.5, images continued by reflection."""
    weights = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2

    def blur(channel: np.ndarray) -> np.ndarray:
        parts = np.lib.stride_tricks.sliding_window_view(np.pad(channel, 5, mode="reflect"), (11, 11))
        return (parts * window).sum((-1, -2))

    values = []
    for x, y in zip(one.astype(np.float64), two.astype(np.float64), strict=True):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_ssim_is_that_of_the_textbook():
    images = batch(2, 24)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    wrong = ((images + 0.2 * noise).clamp(0, 1) * 255).round() / 255
    quality = ImageQuality()
    quality.update(images, wrong)
    expected = np.mean([ssim(a, b) for a, b in zip(images.numpy(), wrong.numpy(), strict=True)])
    assert quality.result()["ssim"] == pytest.approx(expected, abs=1e-4)
    assert 0.3 < expected < 0.99


def test_reconstructions_are_measured_as_they_would_be_stored():
    images = batch(3)
    stored, raw = ImageQuality(), ImageQuality()
    stored.update(images, images)
    raw.update(images, images + 0.4 / 255)
    assert raw.result() == stored.result()
    assert stored.result() == pytest.approx(
        {"psnr": 60.0, "ssim": 1.0, "images": 3}
    )  # identical: not infinite
    beyond, clamped = ImageQuality(), ImageQuality()
    values = 3 * batch(3, 20)[:, :, :16, :16] - 1
    beyond.update(images, values)
    clamped.update(images, values.clamp(0, 1))
    assert beyond.result() == clamped.result()


def test_batches_make_no_difference():
    images, wrong = batch(5), batch(5).flip(0)
    whole, parts = ImageQuality(), ImageQuality()
    whole.update(images, wrong)
    for i in range(0, 5, 2):
        parts.update(images[i : i + 2], wrong[i : i + 2])
    assert parts.result() == pytest.approx(whole.result(), abs=1e-5)


def test_processes_are_weighted_by_their_images(monkeypatch):
    quality = ImageQuality()
    quality.psnr, quality.ssim, quality.count = 20.0, 0.5, 1
    other = torch.tensor([120.0, 2.5, 3.0], dtype=torch.float64)
    monkeypatch.setattr(image_quality.distributed, "all_reduce_sum", lambda sums: sums + other)
    assert quality.result() == {"psnr": 35.0, "ssim": 0.75, "images": 4.0}


def test_no_images_are_no_crash():
    assert ImageQuality().result() == {"psnr": 0.0, "ssim": 0.0, "images": 0.0}
