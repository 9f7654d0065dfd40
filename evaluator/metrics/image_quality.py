"""Similarity of reconstructions to originals: PSNR, SSIM and LPIPS, averaged over images.

Published scripts round, truncate and window differently; `QUALITY_PROTOCOLS` names the ways whose numbers are quoted.
Their batch means are not repeated: every image weighs the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from common import distributed
from common.images import to_float, to_uint8
from evaluator.metrics.base import Metric

# The keys of `QUALITY_PROTOCOLS`, for options.
QualityName = Literal["rounded", "maskbit", "seed_voken", "llamagen", "vector_quantization"]
PIXELS = 2**20  # values of one image batch that SSIM works on at a time; bounds its memory to about 100 MB


@dataclass(frozen=True)
class SSIM:
    """One way to compute SSIM (Wang et al. 2004); constants 0.01 and 0.03 times the data range.

    Attributes:
        window: "uniform7" (7 x 7 mean, sample covariance) or "gaussian11" (11 x 11, sigma 1.5, population covariance).
        reflect: continue images by reflection and average the whole map, as torchmetrics does; otherwise only whole
            windows count.
        data_range: span of values that the constants assume; images are in [0, 1] all the same.
    """

    window: str
    reflect: bool = False
    data_range: float = 1.0

    @property
    def radius(self) -> int:
        """Pixels from the centre of the window to its edge."""
        return 3 if self.window == "uniform7" else 5


SSIM_VARIANTS = {
    "reflected": SSIM("gaussian11", reflect=True),  # torchmetrics, MaskBit
    "wang": SSIM("gaussian11"),  # the paper; pytorch-msssim, piq below 384 pixels, skimage's gaussian_weights
    "uniform": SSIM("uniform7"),  # skimage's default
    # skimage told that values span 2 while they are in [0, 1]: too high by 0.01 ... 0.05.
    "uniform_range2": SSIM("uniform7", data_range=2.0),
}


def psnr(images: torch.Tensor, reconstructions: torch.Tensor, *, guard: float = 0.0) -> torch.Tensor:
    """Peak signal-to-noise ratio per image, 10 log10(1 / (mean squared error + guard)) in dB, [B].

    Args:
        images: [B, C, H, W] in [0, 1].
        reconstructions: the same shape.
        guard: added to the error; without it equal images give infinity.

    Raises:
        ValueError: for different shapes.
    """
    _check_pair(images, reconstructions)
    error = (images - reconstructions).square().mean(dim=(1, 2, 3))
    return -10.0 * (error + guard).log10()


def ssim(images: torch.Tensor, reconstructions: torch.Tensor, variant: str = "reflected") -> torch.Tensor:
    """Structural similarity per image, mean over channels and positions, [B], in the type of the images.

    Args:
        images: [B, C, H, W] in [0, 1]; float64 for more than four digits.
        reconstructions: the same shape.
        variant: one of `SSIM_VARIANTS`.

    Raises:
        ValueError: for different shapes, an unknown variant, or sides below that of its window.
    """
    _check_pair(images, reconstructions)
    if variant not in SSIM_VARIANTS:
        raise ValueError(f"variant={variant!r} must be one of {', '.join(SSIM_VARIANTS)}")
    kind = SSIM_VARIANTS[variant]
    if min(images.shape[-2:]) < 2 * kind.radius + 1:
        raise ValueError(
            f"SSIM {variant!r} needs sides of at least {2 * kind.radius + 1} pixels, got {tuple(images.shape)}"
        )
    rows = max(1, PIXELS // max(1, images[0].numel())) if len(images) else 1
    parts = zip(images.split(rows), reconstructions.split(rows), strict=True)
    return torch.cat([_ssim(x, y, kind) for x, y in parts])


def _ssim(x: torch.Tensor, y: torch.Tensor, kind: SSIM) -> torch.Tensor:
    """Per image, [B]: by the library where it computes this variant."""
    if kind.reflect:
        return structural_similarity_index_measure(x, y, data_range=kind.data_range, reduction="none")
    return _ssim_map(x, y, kind).mean(dim=(1, 2, 3))


def _ssim_map(x: torch.Tensor, y: torch.Tensor, kind: SSIM) -> torch.Tensor:
    mean_x, mean_y, xx, yy, xy = (_blur(z, kind) for z in (x, y, x * x, y * y, x * y))
    # The sample covariance divides by one less than the window's pixels.
    size = (2 * kind.radius + 1) ** 2
    scale = size / (size - 1) if kind.window == "uniform7" else 1.0
    c1, c2 = (0.01 * kind.data_range) ** 2, (0.03 * kind.data_range) ** 2
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    similar = (2 * product + c1) * (2 * scale * (xy - product) + c2)
    return similar / ((squares + c1) * (scale * (xx + yy - squares) + c2))


def _blur(x: torch.Tensor, kind: SSIM) -> torch.Tensor:
    """Weighted mean over the window at every place where it fits; both windows are products of rows and columns."""
    places = torch.arange(-kind.radius, kind.radius + 1, dtype=x.dtype, device=x.device)
    weights = torch.ones_like(places) if kind.window == "uniform7" else (-places.square() / 4.5).exp()
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, weights[None, None, None]), weights[None, None, :, None])
    return flat.view(*x.shape[:2], *flat.shape[-2:])


def _check_pair(images: torch.Tensor, reconstructions: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape != reconstructions.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} must share one shape "
            "[B, C, H, W]"
        )


def _stored(images: torch.Tensor) -> torch.Tensor:
    """Rounded to 8 bits, as a PNG file holds them."""
    return to_float(to_uint8(images))


def _truncated(images: torch.Tensor) -> torch.Tensor:
    """Clamped and cut to 8 bits without rounding: half a level too dark on average."""
    return to_float((images.float().clamp(0, 1) * 255.0).to(torch.uint8))


def _truncated_from_signed(images: torch.Tensor) -> torch.Tensor:
    """An 8-bit file after x / 127.5 - 1 and back, truncated: 95 of the 256 levels come out one too low.

    Loaders compute it in float64 and narrow the result, which decides the levels that are lost; a table, because not
    every device has the type.
    """
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1.0
    return _truncated((levels.float() + 1.0) / 2.0).to(images.device)[to_uint8(images).long()]


def _truncated_from_halves(images: torch.Tensor) -> torch.Tensor:
    """An 8-bit file after (x / 255 - 0.5) / 0.5 and back, truncated: 63 of the 256 levels come out one too low."""
    signed = (_stored(images) - 0.5) / 0.5
    return _truncated((signed + 1.0) / 2.0)


@dataclass(frozen=True)
class QualityProtocol:
    """How one tool compares an original with its reconstruction.

    Attributes:
        original: maps originals in [0, 1] to what is compared.
        reconstruction: the same for reconstructions.
        ssim: key of `SSIM_VARIANTS`.
        psnr_guard: see `psnr`.
        psnr_limit: dB that an image counts at most; identical ones are infinitely good and would spoil the mean.
    """

    original: Callable[[torch.Tensor], torch.Tensor]
    reconstruction: Callable[[torch.Tensor], torch.Tensor]
    ssim: str
    psnr_guard: float = 0.0
    psnr_limit: float = math.inf


QUALITY_PROTOCOLS = {
    # What is right: originals as they are, reconstructions as stored. 8-bit rounding alone is at 59 dB.
    "rounded": QualityProtocol(torch.Tensor.float, _stored, "reflected", psnr_limit=60.0),
    "maskbit": QualityProtocol(torch.Tensor.float, _stored, "reflected", psnr_guard=1e-10),
    "seed_voken": QualityProtocol(_truncated_from_signed, _truncated, "uniform"),
    "llamagen": QualityProtocol(torch.Tensor.float, _stored, "uniform_range2"),  # GigaTok too
    "vector_quantization": QualityProtocol(_truncated_from_halves, _truncated, "uniform"),
}


class ImageQuality:
    """Mean per-image PSNR (dB), SSIM and the distances of networks (LPIPS); sums only, reduced once over processes.

    By default reconstructions are clamped and rounded to 8 bit first, as they would be when stored. LPIPS sees them
    clamped but not rounded, as the published tools have it.

    Args:
        protocol: one of `QUALITY_PROTOCOLS`; belongs beside every number that is reported.
        networks: further distances by name: networks with the signature of `modeling.losses.lpips.LPIPS` (images in
            [0, 1] to a distance per image), frozen and in eval mode, on the device of the images.

    Raises:
        ValueError: for an unknown protocol, or a network in training mode, whose dropout would be random.
    """

    def __init__(self, *, protocol: str = "rounded", networks: Mapping[str, nn.Module] | None = None) -> None:
        if protocol not in QUALITY_PROTOCOLS:
            raise ValueError(f"protocol={protocol!r} must be one of {', '.join(QUALITY_PROTOCOLS)}")
        self.protocol = protocol
        self.networks = dict(networks or {})
        training = [name for name, network in self.networks.items() if network.training]
        if training:
            raise ValueError(f"{', '.join(training)} must be in eval mode")
        self.psnr = self.ssim = 0.0
        self.distances = dict.fromkeys(self.networks, 0.0)
        self.count = 0

    @torch.no_grad()
    def update(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Add a batch: both [B, 3, H, W], originals in [0, 1]; returns the PSNR of every image, [B]."""
        _check_pair(images, reconstructions)
        rule, device = QUALITY_PROTOCOLS[self.protocol], images.device
        # Differences of rounded pixels are small against them; only MPS lacks the type.
        kind = torch.float32 if device.type == "mps" else torch.float64
        with torch.autocast(device.type, enabled=False):
            x, y = rule.original(images).to(kind), rule.reconstruction(reconstructions).to(kind)
            ratios = psnr(x, y, guard=rule.psnr_guard).clamp(max=rule.psnr_limit)
            self.psnr += float(ratios.cpu().double().sum())
            self.ssim += float(ssim(x, y, rule.ssim).cpu().double().sum())
            for name, network in self.networks.items():
                width = next((p.dtype for p in network.parameters()), torch.float32)
                distance = network(images.to(width), reconstructions.to(width).clamp(0, 1))
                self.distances[name] += float(distance.cpu().double().sum())
        self.count += len(images)
        return ratios

    def result(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """`psnr`, `ssim`, `images` (how many) and the names of the networks, over all processes."""
        values = [self.psnr, self.ssim, float(self.count), *self.distances.values()]
        # A single process may compute where float64 is unknown.
        place = device if distributed.is_active() else "cpu"
        sums = torch.tensor(values, dtype=torch.float64, device=place)
        total_psnr, total_ssim, count, *rest = distributed.all_reduce_sum(sums).tolist()
        scale = 1.0 / max(count, 1.0)
        means = {name: value * scale for name, value in zip(self.distances, rest, strict=True)}
        return {"psnr": total_psnr * scale, "ssim": total_ssim * scale, "images": count} | means


class QualityMetric(Metric):
    """One of the means of `ImageQuality`."""

    compares = "pairs"

    def compute(self, own: Mapping[str, float], reference: None, **_: Any) -> Sequence[float]:
        """Picked from `ImageQuality.result`."""
        return [own[self.name]]
