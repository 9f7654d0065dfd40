"""rFID of reconstructions that were never stored as 8 bit, as the tools of Open-MAGVIT2 and IBQ compute it.

The network is the one of every FID. What comes before it is that of pytorch-fid: images in [0, 1] are resized to 299
pixels bilinearly with half-pixel centres and without smoothing, and mapped to 2 x - 1; not TensorFlow's resize of 8-bit
values and (x - 128) / 128. The covariances have divisor N - 1, as everywhere.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from evaluator.inception import read_inception, warn_if_imitated
from evaluator.inception_fast import FastInception, full_precision
from evaluator.inception_network import DIMS, IMAGE_SIDE, InceptionV3
from evaluator.inception_weights import OFFICIAL_SHA256
from evaluator.metrics import result_name
from evaluator.metrics.fid import frechet_distance
from evaluator.moments import Moments
from evaluator.networks import extractor_facts
from evaluator.pixels import require_images
from modeling.layers.half import HALF_PRECISIONS, PRECISIONS

Device = torch.device | str


class FloatExtractor(Protocol):
    """A network: images float [B, 3, H, W] in [0, 1] to pooled features [B, dims["pool"]]."""

    weights_hash: str
    approximate: bool
    dims: dict[str, int]

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


class FloatInception(FastInception):
    """The feature network for float images of any size, in "float32", or an approximation in half precision."""

    def __init__(
        self, network: InceptionV3, *, weights_hash: str, precision: str = "float32", device: Device = "cpu"
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision={precision!r}: images that are not 8 bit take {', '.join(PRECISIONS)}"
            )
        super().__init__(network, device=device, dtype=PRECISIONS[precision])
        self.weights_hash, self.precision = weights_hash, precision
        self.official, self.approximate = weights_hash == OFFICIAL_SHA256, precision in HALF_PRECISIONS
        self.dims = {"pool": DIMS["pool"]}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features float32 [B, 2048] of float images [B, 3, H, W] in [0, 1]. Raises ValueError for others."""
        require_images(images)
        if not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; expected float [B, 3, H, W] in [0, 1]"
            )
        parts = [torch.zeros(0, self.dims["pool"], device=self.device)]
        with full_precision(self.device):
            for chunk in images.split(self.batch):
                pixels = chunk.to(self.device, torch.float32)
                pixels = F.interpolate(pixels, (IMAGE_SIDE, IMAGE_SIDE), mode="bilinear", align_corners=False)
                # The stem takes images of this size as they are and maps x to (x - 128) / 128: here to 2 x - 1 exactly.
                parts.append(self._features(256 * pixels).pool)
        return torch.cat(parts)


def load_float_inception(
    weights: str | Path | None = None, *, device: torch.device | str = "cpu", precision: str = "float32"
) -> FloatInception:
    """`FloatInception` with its weights; arguments and errors are those of `evaluator.inception.load_inception`."""
    warn_if_imitated(PRECISIONS.get(precision, torch.float32), torch.device(device))
    network, weights_hash = read_inception(weights)
    return FloatInception(network, weights_hash=weights_hash, precision=precision, device=device)


class FloatRFID:
    """rFID of float reconstructions against the images that they were made of, over all processes."""

    def __init__(self, *, extractor: FloatExtractor, device: torch.device | str = "cpu") -> None:
        self.extractor, self.device = extractor, device
        self.own, self.others = (Moments(extractor.dims["pool"]) for _ in range(2))

    def update_pairs(self, images: torch.Tensor, originals: torch.Tensor) -> None:
        """Add reconstructions and their originals, float [B, 3, H, W] in [0, 1]; raises ValueError for others."""
        require_images(images, "reconstructions")
        require_images(originals, "originals")
        self.own.update(self.extractor(images.clamp(0, 1)))
        self.others.update(self.extractor(originals))

    def result(self) -> dict[str, float]:
        """`rfid`, with the number of images in its name unless it is 50,000; every process must call it.

        ValueError: there are fewer than two images.
        """
        own, others = self.own.result(self.device), self.others.result(self.device)
        counts = {"count1": others.count, "count2": own.count}
        # Every process for itself: the sums are the same on all, and so is an error.
        value = frechet_distance(others.mean, others.covariance, own.mean, own.covariance, **counts)
        return {result_name("rfid", own.count): value}

    def facts(self) -> dict[str, Any]:
        return {
            "rfid": "images not stored as 8 bit; half-pixel bilinear to 299 (pytorch-fid)",
            "extractors": extractor_facts({"inception": self.extractor}),
        }
