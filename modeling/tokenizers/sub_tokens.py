"""A tokenizer seen through its sub-tokens, for generators that cannot choose among all codes at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from modeling.token_factors import TokenFactors
from modeling.tokenizers.base import Tokenizer, TokenizerOutput

_LARGEST_SUGGESTED = 2**14  # vocabulary of a usual softmax


def equal_factors(sizes: Sequence[int]) -> TokenFactors:
    """Factors that share one vocabulary, since a generator has one for the whole sequence; else ValueError."""
    factors = TokenFactors(sizes)
    if len(sizes) < 2 or len(set(sizes)) > 1:
        raise ValueError(f"factors={list(sizes)} must be two or more equal sizes, such as 512, 512")
    return factors


def suggest_factors(codebook_size: int) -> list[int] | None:
    """The fewest equal sizes of at most 2^14 whose product is the codebook, or None if there are none."""
    for count in range(2, codebook_size.bit_length()):
        size = round(codebook_size ** (1 / count))
        if size**count == codebook_size and size <= _LARGEST_SUGGESTED:
            return [size] * count
    return None


class SubTokenView(Tokenizer):
    """The same images as sequences of N G sub-tokens: those of a token stand together, its first digit first.

    Everything but the tokens is the wrapped tokenizer's, its weights under their own names among it: the view is saved
    as that tokenizer, and has its `storage.weights.weight_hash`. `factors` are G equal sizes whose product is its
    codebook.
    """

    def __init__(self, *, tokenizer: Tokenizer, factors: Sequence[int]) -> None:
        super().__init__()
        if tokenizer.codebook_size is None:
            raise ValueError("a continuous bottleneck has no tokens to be split by factors")
        self.factors = equal_factors(factors)
        self.factors.check(tokenizer.codebook_size)
        self.tokenizer = tokenizer
        self.image_size, self.downscale = tokenizer.image_size, tokenizer.downscale
        self.needs_text = tokenizer.needs_text
        self.text_length, self.text_width = tokenizer.text_length, tokenizer.text_width
        self.learns = tokenizer.learns
        self.training = tokenizer.training

    @property
    def num_tokens(self) -> int:
        return self.tokenizer.num_tokens * len(self.factors)  # N G

    @property
    def codebook_size(self) -> int:
        return self.factors.sizes[0]  # values of one sub-token

    @property
    def bits_per_image(self) -> float | None:
        return self.tokenizer.bits_per_image

    @property
    def section(self) -> dict[str, Any] | None:
        return self.tokenizer.section

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.tokenizer.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        return self.tokenizer.load_state_dict(state_dict, strict=strict, assign=assign)

    def token_grid(self, height: int, width: int) -> tuple[int, int] | None:
        grid = self.tokenizer.token_grid(height, width)
        return grid and (grid[0], grid[1] * len(self.factors))  # those of a token stand together

    def check_images(self, images: torch.Tensor) -> None:
        self.tokenizer.check_images(images)

    @property
    def _token_shapes(self) -> str:
        return f"of {len(self.factors)} sub-tokens each, {self.tokenizer._token_shapes}"

    def _fits(self, shape: torch.Size) -> bool:
        tokens, rest = divmod(shape[-1], len(self.factors)) if shape else (0, 1)
        return not rest and self.tokenizer._fits(torch.Size([*shape[:-1], tokens]))

    def join(self, tokens: torch.Tensor) -> torch.Tensor:
        """Sub-tokens int64 [B, N G] -> tokens int64 [B, N]; ValueError if rows do not consist of whole tokens."""
        if tokens.shape[-1] % len(self.factors):
            raise ValueError(f"{tokens.shape[-1]} sub-tokens are not a multiple of {len(self.factors)}")
        return self.factors.join(tokens.unflatten(-1, (-1, len(self.factors))))  # [B, N, G] -> [B, N]

    def split(self, tokens: torch.Tensor) -> torch.Tensor:  # Tokens int64 [B, N] -> sub-tokens int64 [B, N G]
        return self.factors.split(tokens).flatten(-2)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.split(self.tokenizer.encode(images))

    def decode(self, tokens: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        return self.tokenizer.decode(self.join(tokens), **options)

    def forward(self, images: torch.Tensor, **options: torch.Tensor) -> TokenizerOutput:
        result = self.tokenizer(images, **options)
        return replace(result, tokens=self.split(result.tokens), latents=None)
