"""The contract of generators: all that training and sampling know about them.

Labels are class indices `0 ... num_classes - 1`. The extra label `num_classes` means "no class" and trains the
unconditional branch of classifier-free guidance.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from modeling.layers.trainable import Trainable


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, none_label: int) -> Tensor:
    """Replace int64 `[B]` labels by `none_label` where `uniform < probability` (label dropout, arXiv 2207.12598).

    `uniform` `[B]` holds one number in `[0, 1)` per sample.
    """
    return torch.where(uniform < probability, none_label, labels)


class DecodeSession(ABC):
    """One generation in flight. It owns its caches, so a model can serve any number of sessions at a time."""

    @abstractmethod
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """Feed the newest tokens and predict the next ones.

        Call it N times, or N * G times for a generator with G factors: then "token" means sub-token here.

        Args:
            tokens: None in the first call, then int64 `[R]`: the choice made after the previous call.

        Returns:
            Logits `[R, codebook_size]` for each of the session's `R` rows; with factors, `[R, factors[k % G]]` in
            call k.
        """


class Generator(Trainable, ABC):
    """Predicts `num_tokens` tokens of `0 ... codebook_size - 1` per image from a label.

    Attributes:
        kind: selects the task (`training/tasks`) and the sampler (`modeling/sampling/draw.py`).
    """

    kind: Literal["autoregressive", "masked"]
    # Settings of the sampler from the run or release that it was loaded from, which drawing starts from; those that it
    # lacks have the defaults of `modeling.sampling.settings`.
    sampling: Mapping[str, Any] = MappingProxyType({})
    section: dict[str, Any] | None = None  # the YAML section that it was built from

    def __init__(self, *, codebook_size: int, num_classes: int, num_tokens: int) -> None:
        super().__init__()
        for key, value in (("codebook_size", codebook_size), ("num_tokens", num_tokens)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if num_classes < 0:  # 0: unconditional, "no class" is the only label
            raise ValueError(f"num_classes={num_classes} must be at least 0")
        self.codebook_size = codebook_size
        self.num_classes = num_classes
        self.num_tokens = num_tokens

    @property
    def none_label(self) -> int:
        """The label "no class"."""
        return self.num_classes

    @property
    def factors(self) -> tuple[int, ...]:
        """Sizes of the sub-tokens that a token is predicted in (`TokenFactors`); their product is the codebook.

        Only decode sessions see sub-tokens; everything else takes and gives whole tokens.
        """
        return (self.codebook_size,)  # one factor: the token itself

    def check_labels(self, labels: Tensor) -> None:
        """Raise ValueError for a label outside `0 ... num_classes`."""
        for label in (int(labels.min()), int(labels.max())):  # waits for the device
            if not 0 <= label <= self.num_classes:
                raise ValueError(f"label {label} is out of range; choose 0 ... {self.num_classes}")

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise ValueError unless `tokens` have the shape `[B, num_tokens]`."""
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ValueError(f"tokens have shape {list(tokens.shape)}, expected [B, {self.num_tokens}]")


class AutoregressiveGenerator(Generator):
    """Predicts tokens one after the other."""

    kind = "autoregressive"
    any_order = True  # whether `forward` takes orders other than raster

    @abstractmethod
    def forward(
        self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Teacher-forced logits of a whole sequence.

        Args:
            tokens: int64 `[B, N]`, raster order.
            labels: int64 `[B]`, `0 ... num_classes`.
            orders: int64 `[B, N]`, one permutation of `0 ... N-1` per sample: `orders[b, k]` is the raster
                position of the k-th token of the sequence. None is raster order.

        Returns:
            Logits `[B, N, codebook_size]` or `[B, N + 1, codebook_size]`: row k predicts the k-th token of the
            sequence, row N nothing. With several factors a tuple of `[B, N, factors[g]]`: row k predicts sub-token g
            of the k-th token from the tokens and sub-tokens before it.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`, or the generator does not take these orders.
        """

    @abstractmethod
    def start_decoding(self, labels: Tensor) -> DecodeSession:
        """Begin generating in raster order, one row per label (int64 `[R]`, `0 ... num_classes`).

        The weights must not change while the session lives. Raises ValueError if a label is out of range.
        """


class MaskedGenerator(Generator):
    """Predicts all tokens of an image at once, from those that are already known (MaskGIT, arXiv 2202.04200).

    The rows of the embedding table are: tokens, `mask_token`, classes, "no class".
    """

    kind = "masked"

    @property
    def mask_token(self) -> int:
        """Marks the tokens to predict in the input."""
        return self.codebook_size

    @property
    def num_ids(self) -> int:
        """Rows of the embedding table."""
        return self.codebook_size + 1 + self.num_classes + 1

    def input_ids(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The id of the label, then the tokens: int64 `[B, N + 1]`."""
        self.check_tokens(tokens)
        return torch.cat([labels[:, None] + (self.codebook_size + 1), tokens], dim=1)

    @abstractmethod
    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits `[B, N, codebook_size]` of every token; masks and labels are never predicted.

        Args:
            tokens: int64 `[B, N]`, `mask_token` where unknown.
            labels: int64 `[B]`, `0 ... num_classes`.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`.
        """
