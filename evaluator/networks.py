"""Networks that measure. A new space of features is a file beside this one, and a line in `NETWORKS`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from common import distributed
from common.console import warn
from common.home import at_home
from evaluator.dino import load_dino
from evaluator.inception import load_inception
from evaluator.inception_weights import ENVIRONMENT, FILE_NAMES, find_inception_weights
from evaluator.lpips import load_lpips
from evaluator.metrics import METRICS, training_metrics

Weights = str | Path | Sequence[str] | None


class Extractor(Protocol):
    """A network: images uint8 [B, 3, H, W] to a named tuple of features [B, dims[name]]."""

    weights_hash: str
    approximate: bool
    dims: Mapping[str, int]

    def __call__(self, images: torch.Tensor) -> Any: ...


@dataclass(frozen=True)
class Network:
    """How a network is loaded, and what it gives."""

    load: Callable[..., Any]  # (files or None, device=...): None finds or downloads them
    features: tuple[str, ...] = ()  # the extractor's `dims`; none for a network that compares pairs
    precisions: bool = False  # `load` also takes `precision`
    files: str = ""  # files that have to be given, because it downloads none


NETWORKS = {
    "inception": Network(load_inception, ("pool", "spatial", "logits"), precisions=True),
    "dinov2": Network(load_dino, ("dinov2",)),
    "lpips": Network(partial(load_lpips, "vgg"), files="VGG-16 trunk, linear heads"),
}


def network_of(metric: str) -> str | None:
    """The network that a metric needs, a key of `NETWORKS`, or None."""
    features = METRICS[metric].features
    giving = (name for name, network in NETWORKS.items() if features in network.features)
    return METRICS[metric].network or next(giving, None)


def load_networks(
    metrics: Sequence[str],
    weights: Mapping[str, Weights],
    *,
    device: torch.device | str,
    precision: str = "float32",
) -> dict[str, Any]:
    """The networks that metrics need, by name. The main process goes first and fills the caches.

    Args:
        weights: files by name of the network; None or missing = it finds or downloads them.
        precision: for networks that know several.

    Raises:
        ValueError: files have to be given and are not.
        FileNotFoundError, OSError: files do not exist or cannot be downloaded.
    """
    needed = dict.fromkeys(name for metric in metrics if (name := network_of(metric)) is not None)
    for name in needed:
        if NETWORKS[name].files and not weights.get(name):
            raise ValueError(f"metric {name} needs {name}_weights=[{NETWORKS[name].files}]")
    networks: dict[str, Any] = {}
    for turn in range(2 if needed else 0):  # the main process downloads, then the others read its files
        if distributed.is_main() == (turn == 0):
            for name in needed:
                options = {"precision": precision} if NETWORKS[name].precisions else {}
                networks[name] = NETWORKS[name].load(weights.get(name), device=device, **options)
        distributed.barrier()
    return networks


def local_networks(
    inception_weights: str | None, lpips_weights: Sequence[str] | None, device: torch.device
) -> dict[str, Any]:
    """Inception and LPIPS if their files are named or cached; nothing is downloaded.

    Args:
        inception_weights: None looks at $INCEPTION_WEIGHTS and into torch's hub folder.
        lpips_weights: VGG-16 trunk and linear heads, or one file with both; None leaves LPIPS out.

    Raises:
        FileNotFoundError, ValueError: a file that is named does not exist or does not fit.
    """
    path: str | Path | None = inception_weights or at_home(os.environ.get(ENVIRONMENT))
    if path is None:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        path = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    found: dict[str, Any] = {}
    if path is None:
        warn("no Inception weights on this machine: no rFID and gFID (docs/evaluation.md)")
    else:
        found["inception"] = load_inception(find_inception_weights(path), device=device)
    if lpips_weights:
        found["lpips"] = load_lpips("vgg", lpips_weights, device=device)
    return found


def comparing_metrics(networks: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that compare reconstructions with their originals by these networks or by none."""
    comparing = [m for m in training_metrics("tokenizer") if METRICS[m].compares != "nothing"]
    return [m for m in comparing if network_of(m) in (None, *networks)]


def extractor_facts(networks: Mapping[str, Extractor]) -> dict[str, Any]:
    """For results: hash and precision of every network, and whether it is the published one where that is known."""
    facts: dict[str, Any] = {}
    for name, network in networks.items():
        facts[name] = {"weights_hash": network.weights_hash, "approximate": bool(network.approximate)}
        for key in ("precision", "official"):
            if hasattr(network, key):
                facts[name][key] = getattr(network, key)
    return facts
