"""What GPT, FactorizedAR and IBQTransformer share: LLaMA blocks over a class and tokens in raster order."""

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from modeling.generators.base import AutoregressiveGenerator
from modeling.layers.attention import check_heads
from modeling.layers.rotary import Rotation, class_rotation


class RasterGenerator(AutoregressiveGenerator):
    """Base of generators that predict tokens in raster order, from a class and the tokens before.

    Args:
        hidden_size: width D, a multiple of `num_heads`.
        rope: "2d": a token's place is its row and column in a square grid. "1d": its place in the row of tokens,
            after the class, for tokens without a grid.
        class_rotation: "zero": query and key vanish at the place of the class, so all positions attend to it alike,
            whatever it holds, as in released weights. "identity": they stay, unrotated.
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
        check_heads(hidden_size, num_heads)
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.rope = rope
        self.class_rotation = class_rotation
        self.activation_checkpointing = activation_checkpointing
        self.rotation("meta")  # raises if the places or the width of heads do not fit

    def rotation(self, device: torch.device | str) -> Rotation:
        """Rotary positions of the N + 1 places of the sequence."""
        # Computed on every call, which takes no time: released files have no such buffer.
        head_dim = self.hidden_size // self.num_heads
        zero = self.class_rotation == "zero"
        return class_rotation(self.num_tokens, head_dim, rope=self.rope, zero=zero, device=device)

    def check_sequence(self, tokens: Tensor, orders: Tensor | None) -> None:
        """Raise ValueError for tokens that are not `[B, num_tokens]`, and for any orders."""
        if orders is not None:
            raise ValueError(
                f"orders have shape {list(orders.shape)}, expected None: {type(self).__name__} supports raster order"
                " only; set randomness_anneal_start and randomness_anneal_end to 0"
            )
        self.check_tokens(tokens)

    @abstractmethod
    def embed_labels(self, labels: Tensor) -> Tensor:
        """int64 `[...]` labels `0 ... num_classes` -> `[..., D]`."""
