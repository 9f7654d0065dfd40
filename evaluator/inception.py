"""The Inception feature extractor that metrics use: the network, loaded, in the chosen precision and speed."""

from collections.abc import Callable
from pathlib import Path

import torch

from common.choices import FeaturePrecision
from common.console import warn
from common.instructions import is_imitated
from evaluator.inception_fast import FastInception, full_precision
from evaluator.inception_network import DIMS, InceptionFeatures, InceptionV3
from evaluator.inception_weights import (
    OFFICIAL_SHA256,
    find_inception_weights,
    load_inception_weights,
    sha256_of_weights,
)
from modeling.layers.half import HALF_PRECISIONS, PRECISIONS

FEATURE_PRECISIONS = {"float64": torch.float64, **PRECISIONS}
# Images that go through the plain network at once; it is exact, not fast, and its maps are large.
PLAIN_BATCH = 16


class FeatureExtractor:
    """Features of 8-bit images, and what a result has to say about them.

    `official`: these are the weights that published numbers were computed with. `approximate`: features are off by more
    than float32 rounding.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], InceptionFeatures],
        *,
        weights_hash: str,
        precision: FeaturePrecision,
        device: torch.device | str,
    ) -> None:
        self._network = network
        self.weights_hash, self.precision, self.device = weights_hash, precision, torch.device(device)
        self.official = weights_hash == OFFICIAL_SHA256
        self.approximate = precision in HALF_PRECISIONS
        self.dims = dict(DIMS)

    def __call__(self, images: torch.Tensor) -> InceptionFeatures:
        """Features of uint8 images [B, 3, H, W] of any size and on any device: float64 or else float32."""
        return self._network(images)


def read_inception(weights: str | Path | None) -> tuple[InceptionV3, str]:
    """The plain network on the CPU, and the SHA-256 of its weights; see `load_inception`."""
    path = find_inception_weights(weights)
    weights_hash = sha256_of_weights(path)
    if weights_hash != OFFICIAL_SHA256:
        warn(
            f"inception weights {path} are not the published file (SHA-256 {weights_hash[:16]}...):"
            " results compare only with results of the same weights"
        )
    network = InceptionV3()
    load_inception_weights(path, network)
    return network, weights_hash


def load_inception(
    weights: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: FeaturePrecision = "float32",
) -> FeatureExtractor:
    """The feature network of FID, sFID and the Inception Score with its weights.

    Args:
        weights: weight file; None looks at `$INCEPTION_WEIGHTS`, in torch's hub folder, and downloads.
        precision: "float32" as the tools compute; "float64", layer by layer as published, exact and slow; "bfloat16"
            and "float16", approximations.

    Raises:
        ValueError: the precision is unknown.
        FileNotFoundError: the weights are not there and cannot be downloaded.
        CheckpointError: they are damaged or belong to another network.
    """
    if precision not in FEATURE_PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(FEATURE_PRECISIONS)}")
    dtype = FEATURE_PRECISIONS[precision]
    warn_if_imitated(dtype, torch.device(device))
    network, weights_hash = read_inception(weights)
    exact = precision == "float64"  # the fast network does not have it
    run = (
        _plain(network, torch.device(device)) if exact else FastInception(network, device=device, dtype=dtype)
    )
    return FeatureExtractor(run, weights_hash=weights_hash, precision=precision, device=device)


def warn_if_imitated(dtype: torch.dtype, device: torch.device) -> None:
    """Say before the first image that a processor without the instructions only loses by half precision."""
    if is_imitated(dtype, device):
        name = str(dtype).removeprefix("torch.")
        warn(
            f"feature_precision={name}: torch finds no instructions for {name} on this processor and imitates them,"
            " which is several times slower than float32, and less exact; use feature_precision=float32"
        )


def _plain(network: InceptionV3, device: torch.device) -> Callable[[torch.Tensor], InceptionFeatures]:
    network = network.to(device, torch.float64)

    def run(images: torch.Tensor) -> InceptionFeatures:
        with full_precision(device):
            parts = [network(chunk.to(device)) for chunk in images.split(PLAIN_BATCH)]
        return InceptionFeatures(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    return run
