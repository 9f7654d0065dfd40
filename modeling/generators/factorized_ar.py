"""FactorizedAR: next-token prediction for codebooks too large for one softmax (Open-MAGVIT2, arXiv 2409.04410).

A token is G sub-tokens (`TokenFactors`). A causal transformer over tokens makes a context of every position, a second
one of G positions predicts the sub-tokens of a token one after the other (section 3.2 of the paper). With G = 2:

    tokens       sequence index     0       1                     ...  n
                 content            class   pre[t[0]] + post[t[0]]     pre[t[n-1]] + post[t[n-1]]
                 result             h[0]    h[1]                       h[n]

    sub-tokens   sequence index     0                     1
    of token n   content            h[n]                  pre[t[n]]
                 predicts           first sub-token       second sub-token

With more sub-tokens, the input of the second transformer at index g is the embedding of sub-token g - 1. Both have the
same rotary positions, the second those of the first's places 0 ... G - 1. Module and parameter names are those of the
released checkpoints.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor, nn

from modeling.generators.base import DecodeSession
from modeling.generators.frozen_linear import FrozenLinear
from modeling.generators.llama_decoding import BlockStep, DecodeStack
from modeling.generators.raster import RasterGenerator
from modeling.layers.initialization import init_weights
from modeling.layers.llama import LlamaBlock, RMSNorm, run_llama_blocks
from modeling.token_factors import TokenFactors

_SEQUENCES = 2**15  # attended to at a time: attention kernels take a batch of at most 2^16 - 1


class FactorizedAR(RasterGenerator):
    """Class-conditional transformer that writes tokens in raster order, each in a few sub-tokens.

    The defaults are those of Open-MAGVIT2. For arguments that are not explained here, and errors, see
    `RasterGenerator`.

    Args:
        factors: sizes of the sub-tokens, two or more, their product the codebook; the first digit is the least
            significant. Open-MAGVIT2: 64 and 4096.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        num_classes: int,
        num_tokens: int,
        factors: Sequence[int],
        hidden_size: int,
        depth: int,  # blocks over tokens
        intra_depth: int,  # blocks over the sub-tokens of a token
        num_heads: int,
        mlp_size: int,  # Open-MAGVIT2: 8 / 3 * hidden_size, rounded up to a multiple of 256
        rope: Literal["2d", "1d"] = "2d",
        class_rotation: Literal["zero", "identity"] = "zero",  # also of the context before sub-tokens
        dropout: float = 0.1,  # on embeddings of tokens, attention output and MLP output
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            num_classes=num_classes,
            num_tokens=num_tokens,
            hidden_size=hidden_size,
            num_heads=num_heads,
            rope=rope,
            class_rotation=class_rotation,
            activation_checkpointing=activation_checkpointing,
        )
        count = len(factors)
        if not 2 <= count <= num_tokens + 1:  # both transformers share one table of N + 1 places
            raise ValueError(
                f"factors={list(factors)} must be 2 sizes or more, and no more than num_tokens + 1 = {num_tokens + 1};"
                " for codebooks in one piece use generator gpt or ibq_ar"
            )
        if intra_depth < 1:  # sub-tokens would not see their context
            raise ValueError(f"intra_depth={intra_depth} must be at least 1")
        self.token_factors = TokenFactors(factors)
        self.token_factors.check(codebook_size)
        self._names = ["pre_emb", *(f"mid_emb_{g}" for g in range(1, count - 1)), "post_emb"]
        for name, size in zip(self._names, factors, strict=True):
            self.add_module(name, nn.Embedding(size, hidden_size))
        self.class_emb = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, hidden_size)})
        self.drop = nn.Dropout(dropout)
        sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "mlp_size": mlp_size}
        self.spatial_blocks, self.factorized_blocks = (
            nn.ModuleList(LlamaBlock(**sizes, dropout=dropout) for _ in range(blocks))
            for blocks in (depth, intra_depth)
        )
        self.norm = RMSNorm(hidden_size)
        self.head = nn.ModuleList(nn.Linear(hidden_size, size, bias=False) for size in factors)
        init_weights(self)
        for head in self.head:
            nn.init.zeros_(head.weight)  # at first all sub-tokens are equally likely

    @property
    def factors(self) -> tuple[int, ...]:
        return self.token_factors.sizes

    @property
    def sub_token_tables(self) -> list[nn.Embedding]:
        """The embedding of every kind of sub-token, in order."""
        return [self.get_submodule(name) for name in self._names]

    def embed_labels(self, labels: Tensor) -> Tensor:
        return self.class_emb["embedding_table"](labels)

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None) -> tuple[Tensor, ...]:
        """Teacher-forced logits `[B, N, factors[g]]` for every g; see `AutoregressiveGenerator.forward`."""
        self.check_sequence(tokens, orders)
        sub_tokens = self.token_factors.split(tokens).unbind(dim=-1)
        embedded = [table(part) for table, part in zip(self.sub_token_tables, sub_tokens, strict=True)]
        content = reduce(add, embedded)[:, :-1]  # the last token predicts nothing
        x = self.drop(torch.cat([self.embed_labels(labels)[:, None], content], dim=1))
        rotation, again = self.rotation(x.device), self.activation_checkpointing
        places = rotation.at(slice(self.num_tokens))
        context = run_llama_blocks(self.spatial_blocks, x, places, activation_checkpointing=again)
        # The sub-tokens of every token are a sequence of their own: [B, N, G, D] -> [B * N, G, D].
        x = torch.stack([context, *embedded[:-1]], dim=2).flatten(0, 1)
        places = rotation.at(slice(len(embedded)))
        parts = [
            run_llama_blocks(self.factorized_blocks, part, places, activation_checkpointing=again)
            for part in x.split(_SEQUENCES)
        ]
        x = self.norm(torch.cat(parts) if len(parts) > 1 else parts[0]).unflatten(0, tokens.shape)
        return tuple(head(part) for head, part in zip(self.head, x.unbind(dim=2), strict=True))

    def start_decoding(self, labels: Tensor) -> DecodeSession:
        return FactorizedDecodeSession(self, labels)


class FactorizedDecodeSession(DecodeSession):
    """Generation in raster order, sub-token by sub-token."""

    @torch.no_grad()
    def __init__(self, model: FactorizedAR, labels: Tensor) -> None:
        model.check_labels(labels)
        self._input = model.embed_labels(labels).clone()  # of the transformer over tokens, so far
        rows = labels.shape[0]
        self._spatial, self._intra = (
            DecodeStack(model, [BlockStep(block, rows) for block in blocks], length, self._input)
            for blocks, length in (
                (model.spatial_blocks, model.num_tokens),  # the class and all tokens but the last
                (model.factorized_blocks, len(model.factors)),  # every token uses these places anew
            )
        )
        self._tables, self._norm = model.sub_token_tables, model.norm
        self._heads = [FrozenLinear(head, packed_rows=rows) for head in model.head]
        self._calls, self._last = 0, model.num_tokens * len(model.factors)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor | None) -> Tensor:
        position, place = divmod(self._calls, len(self._heads))
        first = self._calls == 0
        assert first == (tokens is None) and self._calls < self._last, "None first, N * G calls at most"
        # At place 0, `tokens` are the last sub-tokens of the token before: table -1.
        hidden = None if first else self._tables[place - 1](tokens)
        if not first:  # a token's input is the sum of its sub-tokens' embeddings
            self._input = hidden.clone() if place == 1 else self._input + hidden
        if place == 0:
            hidden = self._spatial(self._input, position)
        self._calls += 1
        return self._heads[place](self._norm(self._intra(hidden, place)))
