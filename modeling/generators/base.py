"""What every generator offers, so that training and sampling need not know which one they hold.

Labels are class indices `0 ... num_classes - 1`; the extra label `num_classes` means "no class": it trains
the unconditional branch of classifier-free guidance. Which table rows they read is the generator's business.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from modeling.layers.trainable import Trainable


def drop_labels(labels: Tensor, uniform: Tensor, probability: float, none_label: int) -> Tensor:
    """Replace a label by `none_label` where `uniform < probability` (label dropout, arXiv 2207.12598).

    Args:
        labels: int64 `[B]`.
        uniform: `[B]` numbers in `[0, 1)`, one per sample, so that the result depends on nothing else.
        probability: 0 keeps every label, 1 drops every label.
        none_label: the generator's "no class" label.
    """
    return torch.where(uniform < probability, none_label, labels)


class DecodeSession(ABC):
    """One generation in flight: owns its caches, so a model can serve any number of sessions at a time."""

    @abstractmethod
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        """Feed the newest tokens and predict the ones after them.

        Args:
            tokens: None in the first call, then int64 `[R]`: what was chosen after the call before. A session is
                called once per token, or of a generator with G factors once per sub-token, N * G times: then these
                are sub-tokens.

        Returns:
            Logits of what comes next, for each of the session's `R` rows: `[R, codebook_size]`, or of a generator
            with factors `[R, factors[k % G]]` in call k.
        """


class Generator(Trainable, ABC):
    """Predicts `num_tokens` tokens of `0 ... codebook_size - 1` per image from a label.

    Attributes:
        kind: how it learns and is drawn from, a key of the tasks (`training/tasks`) and of the samplers
            (`modeling/sampling/draw.py`).
    """

    kind: Literal["autoregressive", "masked"]

    def __init__(self, *, codebook_size: int, num_classes: int, num_tokens: int) -> None:
        super().__init__()
        for key, value in (("codebook_size", codebook_size), ("num_tokens", num_tokens)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be at least 0")
        self.codebook_size = codebook_size
        self.num_classes = num_classes
        self.num_tokens = num_tokens

    @property
    def none_label(self) -> int:
        """The label that stands for "no class"."""
        return self.num_classes

    @property
    def factors(self) -> tuple[int, ...]:
        """Sizes of the sub-tokens that a token is predicted in, their product the codebook (`TokenFactors`).

        One size, the codebook's, for generators that predict tokens as they are. Tokens are whole ones everywhere,
        except in decode sessions.
        """
        return (self.codebook_size,)

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels that this generator does not know; waits for the device.

        Raises:
            ValueError: a label is not in `0 ... num_classes`.
        """
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label <= self.num_classes:
                raise ValueError(f"label {label} is out of range; choose 0 ... {self.num_classes}")

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse tokens of another shape.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ValueError(f"tokens have shape {list(tokens.shape)}, expected [B, {self.num_tokens}]")


class AutoregressiveGenerator(Generator):
    """Predicts tokens one after the other.

    Attributes:
        any_order: whether `forward` takes orders other than raster.
    """

    kind = "autoregressive"
    any_order = True

    @abstractmethod
    def forward(
        self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Teacher-forced logits of a whole sequence.

        Args:
            tokens: int64 `[B, N]`, raster order.
            labels: int64 `[B]`, `0 ... num_classes` (the last one: no class).
            orders: int64 `[B, N]`, one permutation of `0 ... N-1` per sample: `orders[b, k]` is the raster
                position of the k-th token of the sequence. None is raster order.

        Returns:
            Logits `[B, N, codebook_size]` or `[B, N + 1, codebook_size]`: row k predicts the k-th token of the
            sequence, row N nothing. Of a generator with several factors a tuple, `[B, N, factors[g]]` each: row k
            predicts sub-token g of the k-th token from the tokens before and the sub-tokens before.
        """

    @abstractmethod
    def start_decoding(self, labels: Tensor) -> DecodeSession:
        """Begin generating, in raster order, one row per label (int64 `[R]`, `0 ... num_classes`)."""


class MaskedGenerator(Generator):
    """Predicts all tokens of an image at once, from those that are already known (MaskGIT, arXiv 2202.04200).

    Ids of the embedding table: tokens, `mask_token`, classes, "no class".
    """

    kind = "masked"

    @property
    def mask_token(self) -> int:
        """Stands in the input at the places that are to be predicted."""
        return self.codebook_size

    @property
    def num_ids(self) -> int:
        """Rows of the embedding table."""
        return self.codebook_size + 1 + self.num_classes + 1

    def input_ids(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The id of the label, then the tokens: int64 `[B, N + 1]`.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`.
        """
        self.check_tokens(tokens)
        return torch.cat([labels[:, None] + (self.codebook_size + 1), tokens], dim=1)

    @abstractmethod
    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits of every token.

        Args:
            tokens: int64 `[B, N]`, `mask_token` at the places that are not known.
            labels: int64 `[B]`, `0 ... num_classes` (the last one: no class).

        Returns:
            Logits `[B, N, codebook_size]`; masks and labels cannot be predicted.
        """
