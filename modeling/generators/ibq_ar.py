"""IBQTransformer: next-token image generation, every block modulated by the class (IBQ, arXiv 2412.02692).

A causal transformer over `class, token_1 ... token_(N-1)`, LLaMA's blocks with the adaptive norms and gates of DiT
(arXiv 2212.09748). The class is both the first input and the condition of all blocks.

    sequence index     0       1      ...  k         ...  N - 1
    content            class   t[0]        t[k-1]         t[N-2]
    predicts           t[0]    t[1]        t[k]           t[N-1]

Module and parameter names are those of the released checkpoints.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from modeling.generators.llama_decoding import DecodeStack, ModulatedBlockStep, TokenDecodeSession, frozen
from modeling.generators.raster import RasterGenerator
from modeling.layers.adaln import activate
from modeling.layers.llama import ModulatedLlamaBlock, ModulatedRMSNorm, run_llama_blocks

_MODULATION_INIT = 0.5  # scales and shifts begin with weights of half the usual size


class IBQTransformer(RasterGenerator):
    """Class-conditional transformer with adaptive norms that writes tokens in raster order.

    Args:
        codebook_size: tokens are `0 ... codebook_size - 1`.
        num_classes: labels are `0 ... num_classes - 1`, and `num_classes` for "no class".
        num_tokens: tokens per image (N).
        hidden_size: width D, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_size: inner width of the gated MLPs; IBQ takes `8 / 3 * hidden_size`, rounded up to a multiple of 256.
        rope, class_rotation: see `RasterGenerator`; the defaults are those of IBQ.
        dropout: on embeddings, attention output and MLP output, in training mode.
        gate_init: initial weights of the gates are this many times the usual size; at 0 blocks begin as identities.
            IBQ: 1e-3 for B and L, 1e-4 for XL, 1e-5 for XXL.
        activation_checkpointing: recompute blocks in the backward pass instead of storing their activations.

    Raises:
        ValueError: sizes do not fit together, or an option is unknown.
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
        class_rotation: Literal["zero", "identity"] = "zero",
        dropout: float = 0.1,
        gate_init: float = 1e-3,
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
        self.tok_emb = nn.Embedding(codebook_size, hidden_size)
        self.class_emb = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, hidden_size)})
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ModulatedLlamaBlock(
                hidden_size=hidden_size, num_heads=num_heads, mlp_size=mlp_size, dropout=dropout
            )
            for _ in range(depth)
        )
        self.head_nm = ModulatedRMSNorm(hidden_size)
        self.head = nn.Linear(hidden_size, codebook_size, bias=False)
        self._initialise(gate_init)

    @torch.no_grad()
    def _initialise(self, gate_init: float) -> None:
        """As its relatives; gates and modulations begin small, and all tokens equally likely."""
        self.initialise_weights()
        for block in self.blocks:
            gates, others = block.ada_lin.linear.weight.split([2 * self.hidden_size, 4 * self.hidden_size])
            gates *= gate_init
            others *= _MODULATION_INIT
        self.head_nm.ada_lin.linear.weight *= _MODULATION_INIT
        nn.init.zeros_(self.head.weight)

    def embed_labels(self, labels: Tensor) -> Tensor:
        """int64 `[...]` labels `0 ... num_classes` -> `[..., D]`."""
        return self.class_emb["embedding_table"](labels)

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `[B, N, V]`; see `AutoregressiveGenerator.forward`.

        Raises:
            ValueError: `tokens` are not `[B, num_tokens]`, or `orders` are given.
        """
        self.check_sequence(tokens, orders)
        condition = self.embed_labels(labels)
        x = self.drop(torch.cat([condition[:, None], self.tok_emb(tokens[:, :-1])], dim=1))
        x = run_llama_blocks(
            self.blocks,
            x,
            self.rotation(x.device).at(slice(self.num_tokens)),
            activate(condition),
            activation_checkpointing=self.activation_checkpointing,
        )
        scale, shift = self.head_nm.scale_and_shift(condition)
        return self.head(self.head_nm(x, scale[:, None], shift[:, None]))

    @torch.no_grad()
    def start_decoding(self, labels: Tensor) -> TokenDecodeSession:
        """Begin generating one row per label; see `AutoregressiveGenerator.start_decoding`."""
        self.check_labels(labels)
        condition, rows = self.embed_labels(labels), labels.shape[0]
        # The class is projected once, for all positions.
        activated, (scale, shift) = activate(condition), self.head_nm.scale_and_shift(condition)
        head = frozen(self.head, rows)
        stack = DecodeStack(
            [ModulatedBlockStep(block, rows, activated) for block in self.blocks],
            self.rotation(condition.device),
            length=self.num_tokens,  # the class and all tokens but the last
            num_heads=self.num_heads,
            example=condition,
        )
        return TokenDecodeSession(
            start=condition,
            stack=stack,
            embed=self.tok_emb,
            finish=lambda hidden: head(self.head_nm(hidden, scale, shift)),
            num_tokens=self.num_tokens,
        )
