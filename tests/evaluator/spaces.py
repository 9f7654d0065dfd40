"""The networks of the feature spaces in small, with weights that follow from the names of their entries."""

from typing import Any

import torch
from torch import nn

from evaluator.space_network import build_space_network
from evaluator.spaces import SPACES
from tests.parity import fill_module, golden_json


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
