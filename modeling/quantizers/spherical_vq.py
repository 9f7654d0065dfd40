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
    """Codes [K, C] without gradient, and whether they have been started on features.

    The flag belongs to the weights: a resumed run must not start its codes again.
    """

    def __init__(self, codebook_size: int, code_dim: int, started: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(codebook_size, code_dim), requires_grad=False)
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))
        self.register_buffer("initted", torch.tensor([float(started)]))


class SphericalVectorQuantizer(CodebookQuantizer):
    """Nearest unit code of the unit latent, straight-through; codes get no gradient.

    `update_codebook` moves each code that was chosen towards the normalised mean of the latents that chose it, over all
    processes: e <- l2n(decay e + (1 - decay) l2n(mean)). Other codes stay. `start_codebook` puts the codes on centroids
    of latents by k-means.

    Losses: `commitment_loss` = beta mean((sg[e] - v)^2) over all entries with v the unit latents, and the same as
    `quantizer_loss`.

    Args:
        codebook_size: number of codes K.
        code_dim: channels C of latents and codes.
        commitment_cost: weight beta of the commitment term.
        decay: of the moving average, in [0, 1).
        kmeans_iterations: Lloyd iterations of the start; 0 keeps random codes.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment_cost: float = 1.0,
        decay: float = 0.99,
        kmeans_iterations: int = 10,
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
        """Unit vectors [B * H * W, C] of latents [B, C, H, W]."""
        return super()._rows(self.normalize(latents))

    def _select(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._codes()[tokens]

    def _codes(self) -> torch.Tensor:
        """Unit codes; stored ones are, but for rounding and for files that were averaged by others."""
        return F.normalize(self.embedding.weight.float(), dim=1)

    @torch.no_grad()
    def _nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        return squared_distances(vectors, self._codes()).argmin(dim=1)

    @property
    def codebook_started(self) -> bool:
        """Whether the codes have been put on latents, now or before they were saved; waits for the device."""
        return bool(self.embedding.initted)

    @torch.no_grad()
    def start_codebook(self, latents: torch.Tensor) -> None:
        """Codes from the latents [B, C, H, W] of all processes; fewer latents than codes fill the first codes only.

        It forgets the codes that were there, however often it is called.
        """
        with torch.autocast(latents.device.type, enabled=False):
            vectors = self._rows(latents)
        pool = all_gather_cat(vectors)
        if len(pool) < self.codebook_size:
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
        """The moving average, over the latents [M, C] of all processes."""
        codes = self._codes()
        sums, counts = torch.zeros_like(codes), codes.new_zeros(len(codes))
        accumulate(vectors, tokens, sums, counts)
        sums, counts = all_reduce_sum(sums), all_reduce_sum(counts)
        moved = F.normalize(torch.lerp(F.normalize(sums, dim=1), codes, self.decay), dim=1)
        self.embedding.weight.copy_(torch.where(counts[:, None] > 0, moved, codes))
        return CodebookUpdate()
