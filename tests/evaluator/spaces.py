"""The networks of the feature spaces in small, with weights that follow from the names of their entries.

    python -m tests.evaluator.spaces samples=... reference=... 'metrics=[fdr6]'

is scripts/evaluate.py with these networks, whose weight files lie in the folder TITOK_WEIGHTS.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import run_script
from evaluator.networks import NETWORKS, Network
from evaluator.space_network import build_space_network, load_space
from evaluator.spaces import SPACES
from jobs.evaluate import evaluate
from jobs.options.evaluate import EvaluateOptions
from storage.weights import write_weights
from tests.evaluator.toy import ToyInception
from tests.parity import fill_module, golden_json

VISION = [name for name in SPACES if name != "inception"]


def small_sizes(name: str) -> dict[str, Any]:
    """Options of timm for a network of 48 features."""
    return golden_json("fdr_features")[name]


@torch.no_grad()
def fill_network(network: nn.Module) -> nn.Module:
    """Fill a network by rule; what would hide positions or whole layers is made larger."""
    fill_module(network)
    for name, tensor in network.named_parameters():
        if name.endswith("gamma"):
            tensor.fill_(0.5)
        elif name in ("pos_embed", "cls_token", "attn_pool.latent"):
            tensor.mul_(0.5 * tensor[0].numel() ** 0.5)
    return network


def small_network(name: str) -> nn.Module:
    return fill_network(build_space_network(SPACES[name], **small_sizes(name)))


def write_small_networks(folder: Path) -> None:
    """Weight files as they lie in the folder TITOK_WEIGHTS."""
    for name in VISION:
        path = folder / "timm" / SPACES[name].model / "model.safetensors"
        write_weights(path, small_network(name).state_dict())


def small_networks() -> dict[str, Network]:
    """Entries of `NETWORKS` that load small networks; Inception is a toy without a file."""
    small = {
        name: replace(NETWORKS[name], load=partial(load_space, SPACES[name], **small_sizes(name)))
        for name in VISION
    }
    return small | {
        "inception": replace(NETWORKS["inception"], load=lambda *_, **__: ToyInception(), find=None)
    }


if __name__ == "__main__":
    NETWORKS.update(small_networks())
    run_script(evaluate, EvaluateOptions, __doc__)
