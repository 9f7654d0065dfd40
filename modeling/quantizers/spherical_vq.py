"""Unit codes that follow the features by moving average: the bottleneck of VQ-KD (BEiT v2, arXiv:2208.06366)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from common.distributed import all_gather_cat, all_reduce_sum
from modeling.quantizers.base import Quantizer, QuantizerOutput
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


class SphericalVectorQuantizer(Quantizer):
    """Nearest unit code of the unit latent, straight-through; codes get no gradient.

    In training mode every forward moves each code that was chosen to the normalised mean of the latents that chose
    it, over all processes: e <- l2n(decay e + (1 - decay) l2n(mean)). Codes that nobody chose stay. Outputs and losses
    are those of the codes before the move. The first training forward puts the codes on centroids of its latents.

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
        super().__init__()
        if codebook_size < 1 or code_dim < 1:
            raise ValueError(f"codebook_size={codebook_size} and code_dim={code_dim} must be at least 1")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1)")
        if kmeans_iterations < 0:
            raise ValueError(f"kmeans_iterations={kmeans_iterations} must not be negative")
        self.codebook_size, self.code_dim, self.latent_channels = codebook_size, code_dim, code_dim
        self.bits_per_token = math.log2(codebook_size)
        self.commitment_cost, self.decay, self.kmeans_iterations = commitment_cost, decay, kmeans_iterations
        self.embedding = UnitCodebook(codebook_size, code_dim, started=kmeans_iterations == 0)

    def forward(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> QuantizerOutput:
        """Replace every latent by the code with the largest cosine.

        Args:
            latents: [B, C, H, W].
            noise: must be None; this bottleneck is deterministic.

        Returns:
            quantized unit vectors [B, C, H, W], tokens [B, H * W], `commitment_loss` = beta mean((sg[e] - v)^2) over
            all entries with v the unit latents, and the same as `quantizer_loss`.

        Raises:
            ValueError: if noise is given.
        """
        if noise is not None:
            raise ValueError("a vector quantizer takes no noise; noise belongs to the Gaussian bottleneck")
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            vectors = self._vectors(latents)
            if self.training and not self.embedding.initted.item():
                self._start(vectors.detach())
            tokens = self._nearest(vectors.detach())
            codes = self._codes()[tokens]
            commitment_loss = self.commitment_cost * F.mse_loss(vectors, codes)
            quantized = vectors + (codes - vectors).detach()
            if self.training:
                self._follow(vectors.detach(), tokens)
        return QuantizerOutput(
            quantized=quantized.view(batch, height, width, -1).permute(0, 3, 1, 2),
            tokens=tokens.view(batch, height * width),
            losses={"quantizer_loss": commitment_loss, "commitment_loss": commitment_loss},
        )

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, H, W] as unit vectors."""
        return F.normalize(latents.float(), dim=1)

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit codes of tokens [B, N] as [B, C, 1, N]."""
        return self._codes()[tokens].transpose(1, 2).unsqueeze(2)

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Tokens [B, H * W] of latents [B, C, H, W]; never moves codes."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._nearest(self._vectors(latents)).view(latents.shape[0], -1)

    def _vectors(self, latents: torch.Tensor) -> torch.Tensor:
        return self.normalize(latents).permute(0, 2, 3, 1).reshape(-1, self.code_dim)

    def _codes(self) -> torch.Tensor:
        """Unit codes; stored ones are, but for rounding and for files that were averaged by others."""
        return F.normalize(self.embedding.weight.float(), dim=1)

    @torch.no_grad()
    def _nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        return squared_distances(vectors, self._codes()).argmin(dim=1)

    @torch.no_grad()
    def _start(self, vectors: torch.Tensor) -> None:
        """Codes from the latents [M, C] of this process and all others; too few of them fill the first codes only."""
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

    @torch.no_grad()
    def _follow(self, vectors: torch.Tensor, tokens: torch.Tensor) -> None:
        """The moving average, over the latents [M, C] of all processes."""
        codes = self._codes()
        sums, counts = torch.zeros_like(codes), codes.new_zeros(len(codes))
        accumulate(vectors, tokens, sums, counts)
        sums, counts = all_reduce_sum(sums), all_reduce_sum(counts)
        moved = F.normalize(torch.lerp(F.normalize(sums, dim=1), codes, self.decay), dim=1)
        self.embedding.weight.copy_(torch.where(counts[:, None] > 0, moved, codes))
