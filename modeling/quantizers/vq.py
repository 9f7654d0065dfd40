"""Vector quantization (arXiv:1711.00937) with optional cosine codes and online codebook clustering."""

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from common.distributed import all_gather_cat, all_reduce_sum, rank
from modeling.quantizers.base import Quantizer, QuantizerOutput
from modeling.quantizers.entropy import entropy_loss

USAGE_DECAY = 0.99


def squared_distances(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """|e_k|^2 - 2 v_m e_k for vectors v [M, C] and codes e [K, C]: [M, K], in one fused product.

    The squared distance up to |v_m|^2, which does not change which code is nearest to a vector.
    """
    return torch.addmm(codes.square().sum(dim=1), vectors, codes.t(), alpha=-2)


class VectorQuantizer(Quantizer):
    """Nearest-code bottleneck with straight-through gradient.

    Online clustering (CVQ-VAE, arXiv:2307.15139): on every training forward, codes that are rarely used are
    moved to the encoder feature nearest to them, over the batch of all processes. The codebook is still
    trained by gradient.

    Dead-code revival (arXiv:2005.00341, section 3): codes whose usage falls below `revive_below` / K restart at random
    features of the batch of all processes. It spreads codes over the features, where online clustering draws many
    codes to the same ones; it suits small data sets and short runs.

    Args:
        codebook_size: number of codes K.
        code_dim: channels C of latents and codes.
        commitment_cost: weight beta of the commitment term.
        use_l2_norm: compare and emit unit vectors (cosine codes).
        distance: how latents choose codes, and online clustering chooses features. "cosine" compares directions but,
            unlike `use_l2_norm`, emits codes as they are and computes losses from latents as they are.
        online_clustering: keep the usage buffer `embed_prob` [K] and revive codes in training mode.
        revive_below: usage, relative to uniform usage, under which a code restarts in training mode; 0 is off.
        entropy_weight: weight of the entropy loss (arXiv:2310.05737) in `quantizer_loss`; 0 leaves it out.
        entropy_temperature: of the assignments in it.

    Raises:
        ValueError: for a size below 1, an unknown distance, or both ways of revival at once.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment_cost: float = 0.25,
        use_l2_norm: bool = False,
        distance: Literal["l2", "cosine"] = "l2",
        online_clustering: bool = False,
        revive_below: float = 0.0,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if distance not in ("l2", "cosine"):
            raise ValueError(f"distance={distance!r} is unknown; choose l2 or cosine")
        if entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature={entropy_temperature} must be above 0")
        if online_clustering and revive_below > 0:
            raise ValueError(f"online_clustering=true and revive_below={revive_below} exclude each other")
        if codebook_size < 1 or code_dim < 1:
            raise ValueError(f"codebook_size={codebook_size} and code_dim={code_dim} must be at least 1")
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.latent_channels = code_dim
        self.bits_per_token = math.log2(codebook_size)
        self.commitment_cost = commitment_cost
        self.use_l2_norm = use_l2_norm
        self.compares_directions = use_l2_norm or distance == "cosine"
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.online_clustering = online_clustering
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)
        self.revive_below = revive_below
        self.revived: torch.Tensor | None = None  # scalar: codes that the last training forward moved
        if online_clustering:
            self.register_buffer("embed_prob", torch.zeros(codebook_size))
        elif revive_below > 0:
            self.register_buffer("embed_prob", torch.full((codebook_size,), 1.0 / codebook_size))
            self.register_buffer("revivals", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> QuantizerOutput:
        """Replace every latent by its nearest code.

        Args:
            latents: [B, C, H, W].
            noise: must be None; this bottleneck is deterministic.

        Returns:
            quantized [B, C, H, W], tokens [B, H * W], losses with v the (normalised) latents and q the codes:
            `commitment_loss` = beta mean((sg[q] - v)^2), `codebook_loss` = mean((q - sg[v])^2), with a weight
            `entropy_loss`, and `quantizer_loss` = their sum; weights are in them.

        Raises:
            ValueError: if noise is given.
        """
        if noise is not None:
            raise ValueError("a vector quantizer takes no noise; noise belongs to the Gaussian bottleneck")
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            features, vectors = self._vectors(latents)
            tokens = self._nearest(features)
            codes = self._select(tokens)
            losses = self._losses(features, vectors, codes)
            quantized = vectors + (codes - vectors).detach()
            if self.training:
                self._update_codebook(features.detach(), tokens)
        return QuantizerOutput(
            quantized=quantized.view(batch, height, width, -1).permute(0, 3, 1, 2),
            tokens=tokens.view(batch, height * width),
            losses=losses,
        )

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, H, W] as they are compared with the codes: unit vectors with `use_l2_norm`."""
        return F.normalize(latents.float(), dim=1) if self.use_l2_norm else latents.float()

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes of tokens [B, N] as [B, C, 1, N]; unit vectors with `use_l2_norm`."""
        return self._select(tokens).transpose(1, 2).unsqueeze(2)

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Tokens [B, H * W] of latents [B, C, H, W]; never moves codes."""
        with torch.autocast(latents.device.type, enabled=False):
            tokens = self._nearest(self._vectors(latents)[0])
        return tokens.view(latents.shape[0], -1)

    @torch.no_grad()
    def _nearest(self, features: torch.Tensor) -> torch.Tensor:
        """Tokens [M] of latents as they are [M, C]."""
        codes = self._compared(self.embedding.weight.float())
        return squared_distances(self._compared(features), codes).argmin(dim=1)

    def _compared(self, vectors: torch.Tensor) -> torch.Tensor:
        """Features or codes [..., C] as their distances are measured."""
        return F.normalize(vectors, dim=-1) if self.compares_directions else vectors

    def _losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses of latents [M, C], as they are and as emitted, and of the codes [M, C] chosen for them."""
        commitment = self.commitment_cost * F.mse_loss(vectors, codes.detach())
        codebook = F.mse_loss(codes, vectors.detach())
        losses = {
            "quantizer_loss": commitment + codebook,
            "commitment_loss": commitment,
            "codebook_loss": codebook,
        }
        if self.entropy_weight:
            # A copy of the codebook: autograd keeps it, and online clustering changes the original in place.
            codes = self._compared(self.embedding.weight.float().clone())
            affinity = -squared_distances(self._compared(features), codes)
            losses["entropy_loss"] = self.entropy_weight * entropy_loss(affinity, self.entropy_temperature)
            losses["quantizer_loss"] = losses["quantizer_loss"] + losses["entropy_loss"]
        return losses

    def _update_codebook(self, features: torch.Tensor, tokens: torch.Tensor) -> None:
        """What a training forward does to the codes after they were used.

        Args:
            features: latents of this process as they are [M, C].
            tokens: the codes chosen for them [M].
        """
        if self.online_clustering:
            self._revive_codes(features, tokens)
        elif self.revive_below > 0:
            self._restart_dead_codes(features, tokens)

    def _vectors(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 features [M, C] of latents [B, C, H, W]: as they are, and as emitted."""
        features = latents.float().permute(0, 2, 3, 1).reshape(-1, self.code_dim)
        return features, self._unit(features)

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        """Unit vectors with `use_l2_norm`, otherwise unchanged."""
        return F.normalize(vectors, dim=-1) if self.use_l2_norm else vectors

    def _select(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codebook rows [..., C].

        Rows are gathered before they are normalised: less work, and autograd keeps no reference to the
        codebook, which online clustering changes in place.
        """
        return self._unit(self.embedding(tokens).float())

    @torch.no_grad()
    def _revive_codes(self, features: torch.Tensor, tokens: torch.Tensor) -> None:
        """Move rarely used codes to their nearest feature of the global batch (arXiv:2307.15139, eq. 4-6).

        Every process reports only its nearest feature per code: K x (C + 2) numbers of traffic, whatever the
        number of tokens. Losses and outputs of the running step used the codebook before this update.

        Args:
            features: un-normalised latents of this process [M, C].
            tokens: [M].
        """
        self._track_usage(tokens)

        # |v|^2 - 2 e v: a second product is far cheaper on a CPU than a reduction across rows of the first.
        codes = self._compared(self.embedding.weight.float())
        nearest_distance, nearest = squared_distances(codes, self._compared(features)).min(dim=1)
        owner = all_gather_cat(nearest_distance[None]).argmin(dim=0)  # rank with the globally nearest feature
        anchors = all_reduce_sum(features[nearest] * (owner == rank())[:, None])

        # 1 for a code that is never used, e^-1000 at uniform usage
        scale = self.codebook_size * 10.0 / (1.0 - USAGE_DECAY)
        strength = torch.exp(-self.embed_prob * scale - 1e-3)[:, None]
        self.embedding.weight.lerp_(anchors.to(self.embedding.weight.dtype), strength)
        self.revived = (strength > 0.5).sum()

    @torch.no_grad()
    def _track_usage(self, tokens: torch.Tensor) -> None:
        """Moving average of the share of the global batch that each code receives; tokens [M] of this process."""
        ones = self.embed_prob.new_ones(tokens.shape)
        counts = all_reduce_sum(torch.zeros_like(self.embed_prob).index_add_(0, tokens, ones))
        self.embed_prob.lerp_(counts / counts.sum(), 1.0 - USAGE_DECAY)

    @torch.no_grad()
    def _restart_dead_codes(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Put rarely used codes on random features [M, C] of the global batch, and give them a fresh average.

        The choice depends on the number of updates alone, so every process, and a resumed run, makes the same one.

        Returns:
            bool [K], the codes that restarted.
        """
        self._track_usage(tokens)
        self.revivals += 1
        generator = torch.Generator().manual_seed(int(self.revivals))
        pool = all_gather_cat(features)
        chosen = torch.randint(len(pool), (self.codebook_size,), generator=generator).to(pool.device)
        dead = self.embed_prob < self.revive_below / self.codebook_size
        self.revived = dead.sum()
        self.embedding.weight.copy_(torch.where(dead[:, None], pool[chosen], self.embedding.weight))
        self.embed_prob.copy_(torch.where(dead, 1.0 / self.codebook_size, self.embed_prob))
        return dead
