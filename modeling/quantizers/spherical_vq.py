"""Unit codes that follow the features by moving average: the bottleneck of VQ-KD (BEiT v2, arXiv:2208.06366)."""

import torch
from torch import nn
from torch.nn import functional as F

from common.distributed import all_gather_cat, all_reduce_sum
from modeling.quantizers.base import CodebookQuantizer, CodebookUpdate
from modeling.quantizers.kmeans import accumulate, kmeans
from modeling.quantizers.vq import squared_distances

FIRST_BATCH_SEED = 0  # the first batch differs between runs already


class UnitCodebook(nn.Module):
    """Codes [K, C] without gradient, and whether they have been started on features."""

    def __init__(self, codebook_size: int, code_dim: int, started: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(codebook_size, code_dim), requires_grad=False)
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))
        self.register_buffer("initted", torch.tensor([float(started)]))  # saved: resuming must not start anew


class SphericalVectorQuantizer(CodebookQuantizer):
    """Nearest unit code of the unit latent, straight-through; codes get no gradient.

    `update_codebook` moves each chosen code towards the normalised mean of the latents that chose it, over all
    processes: e <- l2n(decay e + (1 - decay) l2n(mean)). `start_codebook` puts the codes on centroids of latents by
    k-means; fewer latents than codes fill the first codes only. Each call forgets the codes that were there.

    `commitment_loss` = beta mean((sg[e] - v)^2) over all entries, v the unit latents; `quantizer_loss` is the same.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment_cost: float = 1.0,  # beta
        decay: float = 0.99,  # in [0, 1)
        kmeans_iterations: int = 10,  # of the start; 0 keeps random codes
    ) -> None:
        super().__init__(codebook_size, code_dim)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1)")
        if kmeans_iterations < 0:
            raise ValueError(f"kmeans_iterations={kmeans_iterations} must not be negative")
        self.commitment_cost, self.decay, self.kmeans_iterations = commitment_cost, decay, kmeans_iterations
        self.embedding = UnitCodebook(codebook_size, code_dim, started=kmeans_iterations == 0)

    moves = True

    def _quantize(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        tokens = self._nearest(vectors)
        codes = self._select(tokens)
        loss = self.commitment_cost * F.mse_loss(vectors, codes)
        quantized = vectors + (codes - vectors).detach()
        return quantized, tokens, {"quantizer_loss": loss, "commitment_loss": loss}

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:  # Latents [B, C, H, W] as unit vectors
        return F.normalize(latents.float(), dim=1)

    def _rows(self, latents: torch.Tensor) -> torch.Tensor:
        return super()._rows(self.normalize(latents))

    def _select(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._codes()[tokens]

    def _codes(self) -> torch.Tensor:
        return F.normalize(self.embedding.weight.float(), dim=1)  # files of others are not quite normalised

    @torch.no_grad()
    def _nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        return squared_distances(vectors, self._codes()).argmin(dim=1)

    @property
    def codebook_started(self) -> bool:
        return bool(self.embedding.initted)  # waits for the device

    @torch.no_grad()
    def start_codebook(self, latents: torch.Tensor) -> None:
        with torch.autocast(latents.device.type, enabled=False):
            vectors = self._rows(latents)
        pool = all_gather_cat(vectors)  # [M of all processes, C]
        if len(pool) < self.codebook_size:  # k-means needs a latent per code
            self.embedding.weight[: len(pool)] = pool
        else:
            generator = torch.Generator().manual_seed(FIRST_BATCH_SEED)
            chosen = torch.randperm(len(pool), generator=generator)[: self.codebook_size]
            centroids = pool[chosen.to(pool.device)]
            del pool  # every process clusters its own share
            centroids = kmeans(vectors, centroids, iterations=self.kmeans_iterations, metric="cosine")
            self.embedding.weight.copy_(centroids)
        self.embedding.initted.fill_(1.0)

    def _move(self, vectors: torch.Tensor, tokens: torch.Tensor) -> CodebookUpdate:
        codes = self._codes()
        sums, counts = torch.zeros_like(codes), codes.new_zeros(len(codes))
        accumulate(vectors, tokens, sums, counts)
        sums, counts = all_reduce_sum(sums), all_reduce_sum(counts)
        moved = F.normalize(torch.lerp(F.normalize(sums, dim=1), codes, self.decay), dim=1)
        self.embedding.weight.copy_(torch.where(counts[:, None] > 0, moved, codes))  # codes not chosen stay
        return CodebookUpdate()
