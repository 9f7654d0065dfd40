"""Similarity of reconstructions to originals: PSNR, SSIM and the distances of networks (LPIPS), averaged over images.

Published scripts round, truncate and window differently; `QUALITY_PROTOCOLS` names the ways whose numbers are quoted.
Their batch means are not repeated: every image weighs the same.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from common import distributed
from common.images import to_float, to_uint8
from evaluator.metrics.base import Metric
from evaluator.pixels import require_images

# The keys of `QUALITY_PROTOCOLS`, for options.
LEAST_SIDE = 16  # pixels, of the network of LPIPS
PIXELS = 2**20  # values that SSIM works on at a time: about 100 MB


@dataclass(frozen=True)
class SSIMVariant:
    """One way to compute SSIM (Wang et al. 2004); constants 0.01 and 0.03 times the data range."""

    window: str  # "uniform7": mean, sample covariance; "gaussian11": sigma 1.5, population covariance
    reflect: bool = False  # continue images by reflection (torchmetrics); else only whole windows count
    data_range: float = 1.0  # span of values that the constants assume; images are in [0, 1] all the same

    @property
    def radius(self) -> int:
        return 3 if self.window == "uniform7" else 5


SSIM_VARIANTS = {
    "reflected": SSIMVariant("gaussian11", reflect=True),  # torchmetrics, MaskBit
    # The paper; pytorch-msssim, piq below 384 pixels, skimage's gaussian_weights.
    "wang": SSIMVariant("gaussian11"),
    "uniform": SSIMVariant("uniform7"),  # skimage's default
    # skimage told that values span 2 while they are in [0, 1]: too high by 0.01 ... 0.05.
    "uniform_range2": SSIMVariant("uniform7", data_range=2.0),
}


def psnr(images: torch.Tensor, reconstructions: torch.Tensor, *, guard: float = 0.0) -> torch.Tensor:
    """Peak signal-to-noise ratio per image in dB, [B], of images [B, C, H, W] in [0, 1].

    `guard` is added to the mean squared error; without it equal images give infinity. ValueError: shapes differ.
    """
    _check_pair(images, reconstructions)
    error = (images - reconstructions).square().mean(dim=(1, 2, 3))
    return -10.0 * (error + guard).log10()


def ssim(images: torch.Tensor, reconstructions: torch.Tensor, variant: str = "reflected") -> torch.Tensor:
    """Structural similarity per image, mean over channels and positions, [B], in the dtype of the images.

    Args:
        images: [B, C, H, W] in [0, 1]; float64 for more than four digits.

    Raises:
        ValueError: shapes differ, the variant is unknown, or a side is below that of its window.
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


def _ssim(x: torch.Tensor, y: torch.Tensor, kind: SSIMVariant) -> torch.Tensor:
    if kind.reflect:  # the library computes this variant
        return structural_similarity_index_measure(x, y, data_range=kind.data_range, reduction="none")
    mean_x, mean_y, xx, yy, xy = (_blur(z, kind) for z in (x, y, x * x, y * y, x * y))
    size = (2 * kind.radius + 1) ** 2
    scale = size / (size - 1) if kind.window == "uniform7" else 1.0  # sample covariance divides by size - 1
    c1, c2 = (0.01 * kind.data_range) ** 2, (0.03 * kind.data_range) ** 2
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    similar = (2 * product + c1) * (2 * scale * (xy - product) + c2)
    return (similar / ((squares + c1) * (scale * (xx + yy - squares) + c2))).mean(dim=(1, 2, 3))


def _blur(x: torch.Tensor, kind: SSIMVariant) -> torch.Tensor:
    places = torch.arange(-kind.radius, kind.radius + 1, dtype=x.dtype, device=x.device)
    # 4.5 = 2 * 1.5^2.
    weights = torch.ones_like(places) if kind.window == "uniform7" else (-places.square() / 4.5).exp()
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]  # [B C, 1, H, W]
    # Both windows are products of a row and a column; only places where they fit are kept.
    flat = F.conv2d(F.conv2d(flat, weights[None, None, None]), weights[None, None, :, None])
    return flat.view(*x.shape[:2], *flat.shape[-2:])


def _check_pair(images: torch.Tensor, reconstructions: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape != reconstructions.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} must share one shape "
            "[B, C, H, W]"
        )


def _stored(images: torch.Tensor) -> torch.Tensor:
    return to_float(to_uint8(images))  # rounded to 8 bits, as a PNG file holds them


def _truncated(images: torch.Tensor) -> torch.Tensor:
    return to_float((images.float().clamp(0, 1) * 255.0).to(torch.uint8))  # half a level too dark on average


def _truncated_from_signed(images: torch.Tensor) -> torch.Tensor:
    """An 8-bit file after x / 127.5 - 1 and back, truncated: 95 of the 256 levels come out one too low."""
    # Loaders compute in float64 and narrow, which decides the levels that are lost; a table, since MPS lacks the type.
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1.0
    return _truncated((levels.float() + 1.0) / 2.0).to(images.device)[to_uint8(images).long()]


def _truncated_from_halves(images: torch.Tensor) -> torch.Tensor:
    """An 8-bit file after (x / 255 - 0.5) / 0.5 and back, truncated: 63 of the 256 levels come out one too low."""
    signed = (_stored(images) - 0.5) / 0.5
    return _truncated((signed + 1.0) / 2.0)


@dataclass(frozen=True)
class QualityProtocol:
    """How one tool compares an original with its reconstruction, both in [0, 1]."""

    original: Callable[[torch.Tensor], torch.Tensor]
    reconstruction: Callable[[torch.Tensor], torch.Tensor]
    ssim: str  # a key of SSIM_VARIANTS
    psnr_guard: float = 0.0
    psnr_limit: float = math.inf  # dB that an image counts at most: one infinite value would spoil the mean


QUALITY_PROTOCOLS = {
    # What is right: originals as they are, reconstructions as stored. 8-bit rounding alone is at 59 dB.
    "rounded": QualityProtocol(torch.Tensor.float, _stored, "reflected", psnr_limit=60.0),
    "maskbit": QualityProtocol(torch.Tensor.float, _stored, "reflected", psnr_guard=1e-10),
    "seed_voken": QualityProtocol(_truncated_from_signed, _truncated, "uniform"),
    "llamagen": QualityProtocol(torch.Tensor.float, _stored, "uniform_range2"),  # GigaTok too
    "vector_quantization": QualityProtocol(_truncated_from_halves, _truncated, "uniform"),
}


class PairMetric(Metric):
    """Mean over images of a comparison with the original; by default the distance that `network` gives."""

    compares = "pairs"

    def distance(
        self, images: torch.Tensor, reconstructions: torch.Tensor, *, rule: QualityProtocol, network: Any
    ) -> torch.Tensor:
        """Compare every image [B, 3, H, W] in [0, 1] with its original: [B].

        A metric without a network gets both as the protocol stores them, float64 (float32 on MPS); one with a network
        gets the originals and the raw reconstructions.
        """
        width = next((p.dtype for p in network.parameters()), torch.float32)
        # Clamped but not rounded, as the published tools have it.
        return network(images.to(width), reconstructions.to(width).clamp(0, 1)).flatten()

    def compute(self, own: Mapping[str, float], reference: None, **_: Any) -> Sequence[float]:
        return [own[self.name]]

    def too_small(self, side: int, quality: str) -> str | None:
        """A network of the usual depth halves the side four times."""
        if not self.network or side >= LEAST_SIDE:
            return None
        return f"{self.name} needs sides of at least {LEAST_SIDE} pixels, the images have {side}"


class PSNR(PairMetric):
    """Peak signal-to-noise ratio in dB."""

    def distance(
        self, images: torch.Tensor, reconstructions: torch.Tensor, *, rule: QualityProtocol, **_: Any
    ) -> torch.Tensor:
        return psnr(images, reconstructions, guard=rule.psnr_guard).clamp(max=rule.psnr_limit)


class SSIM(PairMetric):
    """Structural similarity."""

    def distance(
        self, images: torch.Tensor, reconstructions: torch.Tensor, *, rule: QualityProtocol, **_: Any
    ) -> torch.Tensor:
        return ssim(images, reconstructions, rule.ssim)

    def too_small(self, side: int, quality: str) -> str | None:
        """Below its window."""
        least = 2 * SSIM_VARIANTS[QUALITY_PROTOCOLS[quality].ssim].radius + 1
        return (
            None
            if side >= least
            else f"{self.name} needs sides of at least {least} pixels, the images have {side}"
        )


class ImageQuality:
    """Means over images of pair metrics; sums only, reduced once over processes.

    Args:
        metrics: what is compared.
        protocol: a key of `QUALITY_PROTOCOLS`; report it beside every number.
        networks: by name, for the metrics that need them: images in [0, 1] to a distance per image, as
            `modeling.losses.lpips.LPIPS`.

    Raises:
        ValueError: the protocol is unknown, or a network is missing or in training mode.
    """

    def __init__(
        self,
        metrics: Sequence[PairMetric] = (PSNR(name="psnr"), SSIM(name="ssim")),
        *,
        protocol: str = "rounded",
        networks: Mapping[str, Any] | None = None,
    ) -> None:
        if protocol not in QUALITY_PROTOCOLS:
            raise ValueError(f"protocol={protocol!r} must be one of {', '.join(QUALITY_PROTOCOLS)}")
        self.metrics, self.protocol, self.networks = metrics, protocol, networks or {}
        for metric in metrics:
            if metric.network and metric.network not in self.networks:
                raise ValueError(f"metric {metric.name} needs its network {metric.network!r}")
            if metric.network and self.networks[metric.network].training:  # dropout would be random
                raise ValueError(f"{metric.network} must be in eval mode")
        self.sums, self.count = {metric.name: 0.0 for metric in metrics}, 0

    @torch.no_grad()
    def update(self, images: torch.Tensor, reconstructions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Add a batch, both [B, 3, H, W], originals in [0, 1]; returns the values of every image, [B], by metric."""
        require_images(images, "originals")  # raw reconstructions go beyond, and tools clamp them
        _check_pair(images, reconstructions)
        rule, device = QUALITY_PROTOCOLS[self.protocol], images.device
        # Differences of rounded pixels are small against them; only MPS lacks float64.
        kind = torch.float32 if device.type == "mps" else torch.float64
        values = {}
        with torch.autocast(device.type, enabled=False):  # also called within a training step
            stored = rule.original(images).to(kind), rule.reconstruction(reconstructions).to(kind)
            for metric in self.metrics:
                pair = (images, reconstructions) if metric.network else stored
                found = metric.distance(*pair, rule=rule, network=self.networks.get(metric.network))
                self.sums[metric.name] += float(found.cpu().double().sum())
                values[metric.name] = found
        self.count += len(images)
        return values

    def leave_out(self, metric: PairMetric) -> None:
        """Measure it no more; its sum stays, because all processes reduce the same sums."""
        self.metrics = [m for m in self.metrics if m is not metric]

    def result(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Means by metric and `images` (how many), over all processes."""
        place = device if distributed.is_active() else "cpu"  # one process may compute without float64
        sums = torch.tensor([*self.sums.values(), self.count], dtype=torch.float64, device=place)
        *totals, count = distributed.all_reduce_sum(sums).tolist()
        scale = 1.0 / max(count, 1.0)
        means = {name: total * scale for name, total in zip(self.sums, totals, strict=True)}
        return means | {"images": count}
