"""Vector quantization with codes that are moving averages of their vectors (arXiv:1711.00937, appendix A.1)."""

import torch
from torch.nn import functional as F

from common.distributed import all_reduce_sum
from modeling.quantizers.base import CodebookUpdate
from modeling.quantizers.kmeans import accumulate
from modeling.quantizers.vq import VectorQuantizer


class EMAVectorQuantizer(VectorQuantizer):
    """Nearest-code bottleneck; the codebook gets no gradient, `update_codebook` moves it.

    With n_k vectors of sum s_k for code k in the batch of all processes: N <- decay N + (1 - decay) n,
    S <- decay S + (1 - decay) s, e = S / N', where N' = (N + eps) / (sum N + K eps) sum N.

    With `initial_count` (N before training) 1, codes without vectors stay where they are; with 0, as in the first
    implementations, the first step throws them far away. The commitment term is the only loss.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment_cost: float = 0.25,  # beta
        decay: float = 0.99,  # of both averages, in [0, 1)
        epsilon: float = 1e-5,  # smooths the counts: codes without vectors stay finite
        initial_count: float = 1.0,
        revive_below: float = 0.0,  # as in `VectorQuantizer`
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            code_dim=code_dim,
            commitment_cost=commitment_cost,
            revive_below=revive_below,
        )
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay={decay} must be at least 0 and below 1")
        if epsilon <= 0.0 or initial_count < 0.0:
            raise ValueError(
                f"epsilon={epsilon} must be above 0 and initial_count={initial_count} at least 0"
            )
        self.decay, self.epsilon, self.moves = decay, epsilon, True
        self.embedding.requires_grad_(False)  # the optimizer must not move it too
        self.register_buffer("cluster_size", torch.full((codebook_size,), float(initial_count)))  # N
        self.register_buffer("embed_avg", self.embedding.weight.detach() * (initial_count or 1.0))  # S

    def _losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor
    ) -> dict[str, torch.Tensor]:  # Commitment alone: the codebook is not trained by gradient
        commitment = self.commitment_cost * F.mse_loss(vectors, codes.detach())
        return {"quantizer_loss": commitment, "commitment_loss": commitment}

    def _move(self, features: torch.Tensor, tokens: torch.Tensor) -> CodebookUpdate:
        sums, counts = torch.zeros_like(self.embed_avg), torch.zeros_like(self.cluster_size)
        accumulate(features, tokens, sums, counts)
        both = all_reduce_sum(torch.cat([counts[:, None], sums], dim=1))  # one message instead of two
        self.cluster_size.lerp_(both[:, 0], 1.0 - self.decay)
        self.embed_avg.lerp_(both[:, 1:], 1.0 - self.decay)
        total = self.cluster_size.sum()
        smooth = (self.cluster_size + self.epsilon) / (total + self.codebook_size * self.epsilon) * total
        self.embedding.weight.copy_(self.embed_avg / smooth[:, None])  # e = S / N'
        if not self.revive_below:
            return CodebookUpdate()
        dead = self._restart_dead_codes(features, tokens)
        self.cluster_size.copy_(torch.where(dead, total / self.codebook_size, self.cluster_size))
        fresh = self.embedding.weight * self.cluster_size[:, None]  # S = e N, so that revived codes stay
        self.embed_avg.copy_(torch.where(dead[:, None], fresh, self.embed_avg))
        return CodebookUpdate(revived=dead.sum())
