"""How modules are trained: what decays, what Muon takes, what FSDP shards, what is recomputed, what is compiled."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Substrings of parameter names that exempt from weight decay. Plain substring tests are part of the published
# recipes: "embed" covers patch embeddings, "ln" also the final adaLN layer of RAR.
NO_DECAY = ("ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed")


class Trainable(nn.Module):
    """Base of all modules that a run trains: tokenizers, generators, discriminators."""

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to the parameter called `name` in this module; here the published rule."""
        return parameter.ndim >= 2 and not any(part in name for part in NO_DECAY)


class CompileUnit(nn.Module):
    """Base of the parts of models that torch.compile turns into a graph each; their forward has no effects."""


class Block(CompileUnit):
    """Base of transformer blocks. Sharded training gathers one at a time; Muon may train their matrices.

    Attributes:
        stacked: how many projections a matrix stacks along dimension 0, by its name in the block; the others are one.
    """

    stacked: ClassVar[Mapping[str, int]] = {}

    def muon_projections(self) -> dict[nn.Parameter, int]:
        """The matrices that Muon may train, with the number of projections in each."""
        return {p: self.stacked.get(name, 1) for name, p in self.named_parameters() if p.ndim == 2}


class Replicated(nn.Module):
    """Base of parts that sharded training keeps whole and in float32 on every process.

    They are used beside `forward`, and some move without a gradient.
    """


def run_block(block: nn.Module, x: Tensor, *inputs: object, activation_checkpointing: bool) -> Tensor:
    """`block(x, *inputs)`; with checkpointing, the backward pass recomputes it instead of storing activations."""
    if activation_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, *inputs, use_reentrant=False)  # through __call__: hooks of FSDP run
    return block(x, *inputs)


def blocks(module: nn.Module) -> list[Block]:
    """All transformer blocks of a module."""
    return [part for part in module.modules() if isinstance(part, Block)]


def compile_units(module: nn.Module) -> list[nn.Module]:
    """The outermost `CompileUnit`s of a module; the module itself if it has none."""
    return _outermost_units(module) or [module]


def _outermost_units(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, CompileUnit):
        return [module]
    return [unit for child in module.children() for unit in _outermost_units(child)]


def replicated(module: nn.Module) -> list[Replicated]:
    """All parts of a module that are not sharded."""
    return [part for part in module.modules() if isinstance(part, Replicated)]
