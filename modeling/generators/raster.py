"""What LLaMA-like generators share that know raster order alone: GPT, FactorizedAR and IBQTransformer."""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from modeling.generators.base import AutoregressiveGenerator
from modeling.layers.rotary import Rotation, class_rotation

_STD = 0.02  # of initial weights


class RasterGenerator(AutoregressiveGenerator):
    """Base of generators that predict tokens in raster order, from a class and the tokens before.

    Args:
        codebook_size, num_classes, num_tokens: see `Generator`.
        hidden_size: width D, a multiple of `num_heads`.
        num_heads: attention heads.
        rope: "2d": a token's place is its row and column in a square grid. "1d": its place in the row of tokens,
            after the class, for tokens without a grid.
        class_rotation: "zero": query and key vanish at the place of the class, so that all attend to it alike,
            whatever it holds: what released weights have learned. "identity": they are there, and are not turned.
        activation_checkpointing: recompute blocks in the backward pass instead of storing their activations.

    Raises:
        ValueError: sizes do not fit together, or `rope` or `class_rotation` is unknown.
    """

    any_order = False

    def __init__(
        self,
        *,
        codebook_size: int,
        num_classes: int,
        num_tokens: int,
        hidden_size: int,
        num_heads: int,
        rope: Literal["2d", "1d"],
        class_rotation: Literal["zero", "identity"],
        activation_checkpointing: bool,
    ) -> None:
        super().__init__(codebook_size=codebook_size, num_classes=num_classes, num_tokens=num_tokens)
        if class_rotation not in ("zero", "identity"):
            raise ValueError(f"class_rotation={class_rotation!r} is unknown; choose zero, identity")
        if min(hidden_size, num_heads) < 1:
            raise ValueError(f"hidden_size={hidden_size} and num_heads={num_heads} must be at least 1")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of num_heads={num_heads}")
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.rope = rope
        self.class_rotation = class_rotation
        self.activation_checkpointing = activation_checkpointing
        self.rotation("meta")  # complains about places and the width of heads, if need be

    @torch.no_grad()
    def initialise_weights(self) -> None:
        """Normal weights and tables (std 0.02), as for all of these models; zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def rotation(self, device: torch.device | str) -> Rotation:
        """Rotary positions of the N + 1 places of the sequence.

        Computed whenever they are needed, which takes no time, rather than kept as a buffer, which files lack.
        """
        head_dim = self.hidden_size // self.num_heads
        zero = self.class_rotation == "zero"
        return class_rotation(self.num_tokens, head_dim, rope=self.rope, zero=zero, device=device)

    def check_sequence(self, tokens: Tensor, orders: Tensor | None) -> None:
        """Refuse tokens that are not `[B, num_tokens]`, and orders.

        Raises:
            ValueError: either is the case.
        """
        if orders is not None:
            raise ValueError(
                f"orders have shape {list(orders.shape)}, expected None: {type(self).__name__} knows raster order"
                " alone; where orders are annealed (randomness_anneal_start, randomness_anneal_end), anneal from 0"
                " to 0"
            )
        self.check_tokens(tokens)

    @abstractmethod
    def embed_labels(self, labels: Tensor) -> Tensor:
        """int64 `[...]` labels `0 ... num_classes` -> `[..., D]`."""
