import math
from typing import get_args

import numpy as np
import pytest
import torch

from common.choices import QualityName
from evaluator.metrics import image_quality
from evaluator.metrics.image_quality import QUALITY_PROTOCOLS, ImageQuality, PairMetric, psnr, ssim
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.parity import golden, golden_json

ARRAYS, VALUES = golden("recon_metrics"), golden_json("recon_metrics")
PAIRS = [0, 1, 2]


def batch(count: int, side: int = 16) -> torch.Tensor:
    levels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(count))
    return levels.float() / 255


def test_psnr_is_ten_log_one_over_the_mean_squared_error():
    images = torch.zeros(2, 3, 16, 16)
    wrong = images.clone()
    wrong[0] += 51 / 255
    wrong[1, :, :8] += 102 / 255  # half of the pixels, twice as wrong
    quality = ImageQuality()
    psnr = quality.update(images, wrong)["psnr"]
    expected = [-10 * math.log10(0.2**2), -10 * math.log10(0.4**2 / 2)]
    assert psnr.tolist() == pytest.approx(expected, abs=1e-4)
    measured = quality.result()
    # The mean of the images' values, not the value of the mean error.
    assert measured["psnr"] == pytest.approx(sum(expected) / 2, abs=1e-4) and measured["images"] == 2


def textbook(one: np.ndarray, two: np.ndarray) -> float:
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
    expected = np.mean([textbook(a, b) for a, b in zip(images.numpy(), wrong.numpy(), strict=True)])
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


def test_batches_make_no_difference(monkeypatch):
    images, wrong = batch(5), batch(5).flip(0)
    monkeypatch.setattr(image_quality, "PIXELS", 2 * images[0].numel())
    whole, parts = ImageQuality(), ImageQuality()
    whole.update(images, wrong)
    for i in range(0, 5, 2):
        parts.update(images[i : i + 2], wrong[i : i + 2])
    assert parts.result() == pytest.approx(whole.result(), abs=1e-5)


def test_processes_are_weighted_by_their_images(monkeypatch):
    quality = ImageQuality()
    quality.sums, quality.count = {"psnr": 20.0, "ssim": 0.5}, 1
    other = torch.tensor([120.0, 2.5, 3.0], dtype=torch.float64)
    monkeypatch.setattr(image_quality.distributed, "all_reduce_sum", lambda sums: sums + other)
    assert quality.result() == {"psnr": 35.0, "ssim": 0.75, "images": 4.0}


def test_no_images_are_no_crash():
    assert ImageQuality().result() == {"psnr": 0.0, "ssim": 0.0, "images": 0.0}


def pair(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Original and raw reconstruction as [1, 3, H, W] in about [0, 1], float32."""
    original = torch.from_numpy(ARRAYS[f"gt_{number}"]).permute(2, 0, 1)[None].float() / 255
    return original, (torch.from_numpy(ARRAYS[f"rec_{number}"])[None].float() + 1) / 2


def rounded(number: int) -> list[torch.Tensor]:
    """The same as 8-bit levels over 255, float64."""
    levels = [x.mul(255).clamp(0, 255).round().double() / 255 for x in pair(number)]
    assert not torch.equal(*levels)
    return levels


@pytest.mark.parametrize("number", PAIRS)
def test_functions_against_stored_values(number):
    expected, images = VALUES[f"pair_{number}"], rounded(number)
    assert psnr(*images).item() == pytest.approx(expected["psnr_rounded_uint8"], abs=1e-6)
    for variant, key, tolerance in [
        ("uniform", "ssim_uniform7_sample_cov", 1e-9),
        ("wang", "ssim_gaussian_sigma1.5_cropped", 1e-9),
        ("wang", "ssim_piq_f64", 1e-9),
        ("wang", "ssim_pytorch_msssim_f64", 5e-6),  # its window is float32
        ("reflected", "ssim_torchmetrics_f64", 1e-9),
    ]:
        assert ssim(*images, variant).item() == pytest.approx(expected[key], abs=tolerance), key


@pytest.mark.parametrize("number", PAIRS)
@pytest.mark.parametrize(
    ("protocol", "psnr_key", "ssim_key", "psnr_tolerance", "ssim_tolerance"),
    [
        ("rounded", "psnr_rounded_uint8", "ssim_torchmetrics_f64", 1e-5, 1e-6),
        ("maskbit", "maskbit_psnr", "maskbit_ssim", 1e-5, 1e-5),
        ("seed_voken", "seed_voken_psnr", "seed_voken_ssim", 1e-4, 1e-6),
        ("llamagen", "llamagen_psnr", "llamagen_ssim_data_range_2", 1e-4, 1e-6),
    ],
)
def test_protocols_of_published_tools(number, protocol, psnr_key, ssim_key, psnr_tolerance, ssim_tolerance):
    quality = ImageQuality(protocol=protocol)
    quality.update(*pair(number))
    measured, expected = quality.result(), VALUES[f"pair_{number}"]
    assert measured["psnr"] == pytest.approx(expected[psnr_key], abs=psnr_tolerance)
    assert measured["ssim"] == pytest.approx(expected[ssim_key], abs=ssim_tolerance)


@pytest.mark.parametrize(
    ("protocol", "key", "lost"),
    [
        ("rounded", "unit_times_255_truncated", 0),
        ("llamagen", "llamagen_127.5x_plus_128_truncated", 0),
        ("seed_voken", "seed_voken_truncated", 95),
        ("vector_quantization", "normalized_half_then_truncated", 63),
    ],
)
def test_grey_levels_that_survive(protocol, key, lost):
    levels = torch.arange(256, dtype=torch.uint8)
    result = QUALITY_PROTOCOLS[protocol].original(levels.float() / 255) * 255
    assert np.array_equal(result.round().numpy(), ARRAYS[f"roundtrip_{key}"])
    assert int((result.round() != levels).sum()) == VALUES[f"grey_levels_lost_{key}"] == lost


@pytest.mark.parametrize("number", PAIRS)
def test_levels_seed_voken_loses(number):
    original = pair(number)[0]
    change = (QUALITY_PROTOCOLS["seed_voken"].original(original) - original).double().sum() * 255
    assert round(float(change)) == VALUES[f"pair_{number}"]["seed_voken_gt_level_sum_change"]


def test_seed_voken_cuts_reconstructions_as_its_evaluation_does():
    known = golden("magvit2_misc")
    images = (torch.from_numpy(known["u8_in"]) + 1.0) / 2.0
    cut = QUALITY_PROTOCOLS["seed_voken"].reconstruction(images) * 255
    assert np.array_equal(cut.round().numpy(), known["u8_eval"])
    assert not np.array_equal(
        (QUALITY_PROTOCOLS["rounded"].reconstruction(images) * 255).round(), known["u8_eval"]
    )


def test_names_for_options_are_those_of_the_protocols():
    assert set(get_args(QualityName)) == set(QUALITY_PROTOCOLS)


def test_vector_quantization_truncates_reconstructions():
    images = torch.full((1, 3, 8, 8), 64 / 255)
    wrong = torch.full((1, 3, 8, 8), 100.9 / 255)
    quality = ImageQuality(protocol="vector_quantization")
    quality.update(images, wrong)
    kept = int(ARRAYS["roundtrip_normalized_half_then_truncated"][64])
    expected = -20 * math.log10((100 - kept) / 255)
    assert quality.result()["psnr"] == pytest.approx(expected, abs=1e-4)


def test_identical_images():
    images = batch(2)
    for protocol, limit in [("rounded", 60.0), ("maskbit", 100.0), ("llamagen", math.inf)]:
        quality = ImageQuality(protocol=protocol)
        quality.update(images, images)
        assert quality.result()["psnr"] == pytest.approx(limit) and quality.result()["ssim"] == 1.0


def test_torchmetrics_agrees_in_a_batch():
    functional = pytest.importorskip("torchmetrics.functional.image")
    images, wrong = batch(3, 20), (batch(3, 20) + 0.2 * batch(3, 20).flip(0)).clamp(0, 1)
    expected = functional.structural_similarity_index_measure(
        wrong.double(), images.double(), data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(ssim(images.double(), wrong.double()), expected, atol=1e-9, rtol=0)


LPIPS = PairMetric(name="lpips", network="lpips")


class Distance(torch.nn.Module):
    """Stands for LPIPS: the largest difference of an image."""

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        return (images - reconstructions).abs().amax(dim=(1, 2, 3), keepdim=True)


def test_perceptual_distances_are_means_over_images():
    images = torch.full((3, 3, 16, 16), 0.5)
    wrong = images.clone()
    wrong[0] += 0.3 + 0.4 / 255  # not rounded
    wrong[1] += 9.0  # clamped
    quality = ImageQuality([LPIPS], networks={"lpips": Distance().eval()})
    quality.update(images[:2], wrong[:2])
    quality.update(images[2:], wrong[2:])
    assert quality.result()["lpips"] == pytest.approx((0.3 + 0.4 / 255 + 0.5) / 3, abs=1e-6)
    metrics = [PairMetric(name=f"lpips_{name}", network=name) for name in ("vgg", "alex")]
    named = ImageQuality(metrics, networks={"vgg": Distance().eval(), "alex": Distance().eval().half()})
    named.update(images, wrong)
    assert list(named.result()) == ["lpips_vgg", "lpips_alex", "images"]
    with pytest.raises(ValueError, match="lpips must be in eval mode"):
        ImageQuality([LPIPS], networks={"lpips": Distance()})
    with pytest.raises(ValueError, match="metric lpips needs its network 'lpips'"):
        ImageQuality([LPIPS])


def _share(rank: int) -> None:
    images, wrong = batch(5), batch(5).flip(0)
    metrics = [*ImageQuality().metrics, LPIPS]
    own, whole = (ImageQuality(metrics, networks={"lpips": Distance().eval()}) for _ in range(2))
    part = slice(0, 2) if rank else slice(2, 5)
    own.update(images[part], wrong[part])
    whole.update(images, wrong)
    expected = {name: total / 5 for name, total in whole.sums.items()}
    assert own.result() == pytest.approx({**expected, "images": 5.0})


@needs_fork
def test_two_processes_equal_one(tmp_path):
    in_two_processes(_share, tmp_path)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="protocol='best'"):
        ImageQuality(protocol="best")
    with pytest.raises(ValueError, match="must share one shape"):
        ImageQuality().update(batch(2), batch(3))
    with pytest.raises(ValueError, match="variant='ms'"):
        ssim(batch(1), batch(1), "ms")
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(batch(1, 10), batch(1, 10))
