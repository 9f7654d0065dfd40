"""Networks that measure: those of the feature spaces, and others.

A new space is a row of `evaluator.spaces.SPACES` if timm has its network, else a file beside this one and a line in
`NETWORKS`.
"""

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
from evaluator.dgm_dinov2 import find_dino_weights, load_dino
from evaluator.inception import load_inception
from evaluator.inception_weights import ENVIRONMENT, FILE_NAMES, find_inception_weights
from evaluator.lpips import load_lpips
from evaluator.metrics import METRICS, training_metrics, with_parts
from evaluator.own_space import OWN_SPACE, load_own_space
from evaluator.space_network import load_space
from evaluator.space_weights import find_space_weights
from evaluator.spaces import SPACES, Space

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
    # Files or None to its files, which may mean to download them; None: `load` takes what is given.
    find: Callable[[Any], Any] | None = None
    files: str = ""  # files that have to be given, because it downloads none


def _network_of_space(space: Space) -> Network:
    load, find = partial(load_space, space), partial(find_space_weights, space)
    return Network(load, (space.features,), precisions=True, find=find)


NETWORKS = {
    "inception": Network(
        load_inception, ("pool", "spatial", "logits"), precisions=True, find=find_inception_weights
    ),
    **{name: _network_of_space(space) for name, space in SPACES.items() if name != "inception"},
    "dinov2_dgm": Network(load_dino, ("dinov2_dgm",), find=find_dino_weights),
    OWN_SPACE: Network(load_own_space, (OWN_SPACE,)),  # in the repository
    "lpips": Network(partial(load_lpips, "vgg"), files="VGG-16 trunk, linear heads"),
}


def network_of(metric: str) -> str | None:
    """The network that a metric needs, a key of `NETWORKS`, or None."""
    features = METRICS[metric].features
    giving = (name for name, network in NETWORKS.items() if features in network.features)
    return METRICS[metric].network or next(giving, None)


def weight_files(
    *, inception: str | None, spaces: Mapping[str, str], lpips: str | Sequence[str] | None = None
) -> dict[str, Weights]:
    """Files by name of the network, for `load_networks`, of those that options name."""
    # The same file gives the space and what dgm-eval makes of it.
    return {**spaces, "inception": inception, "dinov2_dgm": spaces.get("dinov2"), "lpips": lpips}


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
        OSError: files do not exist or cannot be downloaded; the message tells of all of them, and nothing was loaded.
    """
    needed = _needed(metrics, weights)
    networks: dict[str, Any] = {}
    for turn in range(2 if needed else 0):  # the main process downloads, then the others read its files
        if distributed.is_main() == (turn == 0):
            for name, files in _found({name: weights.get(name) for name in needed}).items():
                options = {"precision": precision} if NETWORKS[name].precisions else {}
                networks[name] = NETWORKS[name].load(files, device=device, **options)
        distributed.barrier()
    return networks


def _needed(metrics: Sequence[str], weights: Mapping[str, Weights]) -> list[str]:
    needed = dict.fromkeys(name for metric in with_parts(metrics) if (name := network_of(metric)))
    for name in needed:
        if NETWORKS[name].files and not weights.get(name):
            raise ValueError(f"metric {name} needs {name}_weights=[{NETWORKS[name].files}]")
    return list(needed)


def missing_networks(metrics: Sequence[str], weights: Mapping[str, Weights]) -> dict[str, str]:
    """Networks that metrics need and whose weights cannot be had, with the reason; the others are downloaded now.

    All processes call it; the main process looks. A network is also missing if its package is.

    Raises:
        ValueError: files have to be given and are not.
    """
    needed = _needed(metrics, weights)

    def look() -> dict[str, str]:
        missing = {}
        for name in needed:
            find = NETWORKS[name].find
            if find is not None:
                try:
                    find(weights.get(name))
                except (OSError, ValueError) as error:
                    missing[name] = str(error)
        return missing

    return distributed.on_main(look)


def _found(weights: Mapping[str, Weights]) -> dict[str, Weights]:
    """Weight files of networks, downloaded where missing; raises one OSError for all that cannot be had."""
    found, missing = {}, []
    for name, files in weights.items():
        find = NETWORKS[name].find
        try:
            found[name] = files if find is None else find(files)
        except OSError as error:  # nobody wants to hear of the next one after having fetched the first
            missing.append(error)
    if len(missing) == 1:
        raise missing[0]
    if missing:
        raise FileNotFoundError(f"{len(missing)} networks lack weights: {'; '.join(map(str, missing))}")
    return found


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
    """For results: hash, precision, recipe of every network, and whether it is the published one if that is known."""
    facts: dict[str, Any] = {}
    for name, network in networks.items():
        facts[name] = {"weights_hash": network.weights_hash, "approximate": bool(network.approximate)}
        for key in ("precision", "official", "recipe"):
            if hasattr(network, key):
                facts[name][key] = getattr(network, key)
    return facts
