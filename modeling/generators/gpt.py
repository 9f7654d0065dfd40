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

from modeling.generators.frozen_linear import FrozenLinear
from modeling.generators.llama_decoding import BlockStep, TokenDecodeSession
from modeling.generators.raster import RasterGenerator
from modeling.layers.initialization import init_weights
from modeling.layers.llama import LlamaBlock, RMSNorm, run_llama_blocks


class GPT(RasterGenerator):
    """Class-conditional LLaMA transformer that writes tokens in raster order.

    For arguments that are not explained here, and errors, see `RasterGenerator`.
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
        mlp_size: int,  # LlamaGen: 8 / 3 * hidden_size, rounded up to a multiple of 256
        rope: Literal["2d", "1d"] = "2d",
        dropout: float = 0.0,  # on embeddings, attention output and MLP output
        attention_dropout: float = 0.0,  # on attention weights
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            num_classes=num_classes,
            num_tokens=num_tokens,
            hidden_size=hidden_size,
            num_heads=num_heads,
            rope=rope,
            class_rotation="zero" if rope == "2d" else "identity",  # 2d: as LlamaGen; 1d: place 0 has angle 0
            activation_checkpointing=activation_checkpointing,
        )
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(num_classes + 1, hidden_size)})
        self.tok_embeddings = nn.Embedding(codebook_size, hidden_size)
        self.drop = nn.Dropout(dropout)
        sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "mlp_size": mlp_size}
        drops = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.layers = nn.ModuleList(LlamaBlock(**sizes, **drops) for _ in range(depth))
        self.norm = RMSNorm(hidden_size)
        self.output = nn.Linear(hidden_size, codebook_size, bias=False)
        init_weights(self)
        nn.init.zeros_(self.output.weight)  # at first all tokens are equally likely

    def embed_labels(self, labels: Tensor) -> Tensor:
        return self.cls_embedding["embedding_table"](labels)

    def forward(self, tokens: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """Teacher-forced logits `[B, N + 1, V]`; see `AutoregressiveGenerator.forward`."""
        self.check_sequence(tokens, orders)
        x = self.drop(torch.cat([self.embed_labels(labels)[:, None], self.tok_embeddings(tokens)], dim=1))
        again = self.activation_checkpointing
        x = run_llama_blocks(self.layers, x, self.rotation(x.device), activation_checkpointing=again)
        return self.output(self.norm(x))

    @torch.no_grad()
    def start_decoding(self, labels: Tensor) -> TokenDecodeSession:
        self.check_labels(labels)
        start, rows = self.embed_labels(labels), labels.shape[0]
        output = FrozenLinear(self.output, packed_rows=rows)
        steps = [BlockStep(block, rows) for block in self.layers]
        return TokenDecodeSession(self, steps, start, self.tok_embeddings, lambda x: output(self.norm(x)))
