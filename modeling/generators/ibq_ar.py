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

from modeling.generators.frozen_linear import FrozenLinear
from modeling.generators.llama_decoding import ModulatedBlockStep, TokenDecodeSession
from modeling.generators.raster import RasterGenerator
from modeling.layers.adaln import activate
from modeling.layers.initialization import init_weights
from modeling.layers.llama import ModulatedLlamaBlock, ModulatedRMSNorm, run_llama_blocks

_MODULATION_INIT = 0.5  # scales and shifts begin with weights of half the usual size


class IBQTransformer(RasterGenerator):
    """Class-conditional transformer with adaptive norms that writes tokens in raster order.

    The defaults are those of IBQ. For arguments that are not explained here, and errors, see `RasterGenerator`.
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
        mlp_size: int,  # IBQ: 8 / 3 * hidden_size, rounded up to a multiple of 256
        rope: Literal["2d", "1d"] = "2d",
        class_rotation: Literal["zero", "identity"] = "zero",
        dropout: float = 0.1,  # on embeddings, attention output and MLP output
        gate_init: float = 1e-3,  # times the usual weights of gates; IBQ: 1e-3 (B, L), 1e-4 (XL), 1e-5 (XXL)
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
        sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "mlp_size": mlp_size}
        self.blocks = nn.ModuleList(ModulatedLlamaBlock(**sizes, dropout=dropout) for _ in range(depth))
        self.head_nm = ModulatedRMSNorm(hidden_size)
        self.head = nn.Linear(hidden_size, codebook_size, bias=False)
        self._initialise(gate_init)

    @torch.no_grad()
    def _initialise(self, gate_init: float) -> None:
        init_weights(self)
        for block in self.blocks:
            gates, others = block.ada_lin.linear.weight.split([2 * self.hidden_size, 4 * self.hidden_size])
            gates *= gate_init  # small: blocks begin close to the identity
            others *= _MODULATION_INIT
        self.head_nm.ada_lin.linear.weight *= _MODULATION_INIT
        nn.init.zeros_(self.head.weight)  # at first all tokens are equally likely

    def embed_labels(self, labels: Tensor) -> Tensor:
        return self.class_emb["embedding_table"](labels)

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `[B, N, V]`; see `AutoregressiveGenerator.forward`."""
        self.check_sequence(tokens, orders)
        condition = self.embed_labels(labels)
        x = self.drop(torch.cat([condition[:, None], self.tok_emb(tokens[:, :-1])], dim=1))
        inputs = self.rotation(x.device).at(slice(self.num_tokens)), activate(condition)
        x = run_llama_blocks(self.blocks, x, *inputs, activation_checkpointing=self.activation_checkpointing)
        scale, shift = self.head_nm.scale_and_shift(condition)
        return self.head(self.head_nm(x, scale[:, None], shift[:, None]))

    @torch.no_grad()
    def start_decoding(self, labels: Tensor) -> TokenDecodeSession:
        self.check_labels(labels)
        condition, rows = self.embed_labels(labels), labels.shape[0]
        # The class is projected once, for all positions.
        activated, (scale, shift) = activate(condition), self.head_nm.scale_and_shift(condition)
        head = FrozenLinear(self.head, packed_rows=rows)
        steps = [ModulatedBlockStep(block, rows, activated) for block in self.blocks]
        return TokenDecodeSession(
            self, steps, condition, self.tok_emb, lambda x: head(self.head_nm(x, scale, shift))
        )
