"""GPT: plain next-token image generation with a LLaMA transformer (LlamaGen, arXiv 2406.06525).

A causal transformer over `class, token_1 ... token_N`: RMS norm, rotary positions, gated MLPs, no biases.

    sequence index     0       1      ...  k         ...  N
    content            class   t[0]        t[k-1]         t[N-1]
    predicts           t[0]    t[1]        t[k]           -

Module and parameter names are those of LlamaGen's released checkpoints.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from modeling.generators.llama_decoding import BlockStep, DecodeStack, TokenDecodeSession, frozen
from modeling.generators.raster import RasterGenerator
from modeling.layers.llama import LlamaBlock, RMSNorm, run_llama_blocks


class GPT(RasterGenerator):
    """Class-conditional LLaMA transformer that writes tokens in raster order.

    Args:
        codebook_size: tokens are `0 ... codebook_size - 1`.
        num_classes: labels are `0 ... num_classes - 1`, and `num_classes` for "no class".
        num_tokens: tokens per image (N).
        hidden_size: width D, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_size: inner width of the gated MLPs; LlamaGen takes `8 / 3 * hidden_size`, rounded up to a multiple of 256.
        rope: "2d": a token's place is its row and column in a square grid (LlamaGen). "1d": its place in the row
            of tokens, after the class, for tokens without a grid.
        dropout: on embeddings, attention output and MLP output, in training mode.
        attention_dropout: on attention weights, in training mode.
        activation_checkpointing: recompute blocks in the backward pass instead of storing their activations.

    Raises:
        ValueError: sizes do not fit together, or `rope` is unknown.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        num_classes: int,
        num_tokens: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_size: int,
        rope: Literal["2d", "1d"] = "2d",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            num_classes=num_classes,
            num_tokens=num_tokens,
            hidden_size=hidden_size,
            num_heads=num_heads,
            rope=rope,
            # So LlamaGen has learned it; the place 0 of a row turns nothing.
            class_rotation="zero" if rope == "2d" else "identity",
            activation_checkpointing=activation_checkpointing,
        )
        self.depth = depth
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, hidden_size)})
        self.tok_embeddings = nn.Embedding(codebook_size, hidden_size)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            LlamaBlock(
                hidden_size=hidden_size,
                num_heads=num_heads,
                mlp_size=mlp_size,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(depth)
        )
        self.norm = RMSNorm(hidden_size)
        self.output = nn.Linear(hidden_size, codebook_size, bias=False)
        # Normal weights and tables (std 0.02), zero output matrix: at first all tokens are equally likely.
        self.initialise_weights()
        nn.init.zeros_(self.output.weight)

    def embed_labels(self, labels: Tensor) -> Tensor:
        """int64 `[...]` labels `0 ... num_classes` -> `[..., D]`."""
        return self.cls_embedding["embedding_table"](labels)

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `[B, N + 1, V]`; see `AutoregressiveGenerator.forward`.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`, or `orders` are given.
        """
        self.check_sequence(tokens, orders)
        x = torch.cat([self.embed_labels(labels)[:, None], self.tok_embeddings(tokens)], dim=1)
        x = run_llama_blocks(
            self.layers,
            self.drop(x),
            self.rotation(x.device),
            activation_checkpointing=self.activation_checkpointing,
        )
        return self.output(self.norm(x))

    @torch.no_grad()
    def start_decoding(self, labels: Tensor) -> TokenDecodeSession:
        """Begin generating one row per label; see `AutoregressiveGenerator.start_decoding`."""
        self.check_labels(labels)
        start, rows = self.embed_labels(labels), labels.shape[0]
        output = frozen(self.output, rows)
        stack = DecodeStack(
            [BlockStep(block, rows) for block in self.layers],
            self.rotation(start.device),
            length=self.num_tokens,  # the class and all tokens but the last
            num_heads=self.num_heads,
            example=start,
        )
        return TokenDecodeSession(
            start=start,
            stack=stack,
            embed=self.tok_embeddings,
            finish=lambda hidden: output(self.norm(hidden)),
            num_tokens=self.num_tokens,
        )
