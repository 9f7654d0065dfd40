"""Vector quantization (arXiv:1711.00937) with optional cosine codes and online codebook clustering."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from common.distributed import all_gather_cat, all_reduce_sum, rank
from modeling.quantizers.base import CodebookQuantizer, CodebookUpdate
from modeling.quantizers.entropy import entropy_loss

USAGE_DECAY = 0.99  # of the moving average of code usage


def squared_distances(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """|v_m - e_k|^2 - |v_m|^2 for vectors v [M, C] and codes e [K, C]: [M, K]; the term left out ranks no code."""
    return torch.addmm(codes.square().sum(dim=1), vectors, codes.t(), alpha=-2)  # one fused product


class VectorQuantizer(CodebookQuantizer):
    """Nearest-code bottleneck with straight-through gradient.

    Losses, with v the (normalised) latents and q the codes: `commitment_loss` = beta mean((sg[q] - v)^2),
    `codebook_loss` = mean((q - sg[v])^2), with a weight `entropy_loss`, and `quantizer_loss` = their sum; weights are
    in them. The codebook is trained by gradient. `update_codebook` also moves codes that are rarely used:

    Online clustering (CVQ-VAE, arXiv:2307.15139) moves them to the encoder feature nearest to them, over the batch of
    all processes.

    Dead-code revival (arXiv:2005.00341, section 3): codes whose usage falls below `revive_below` / K restart at random
    features of the batch of all processes. It spreads codes over the features, where online clustering draws many
    codes to the same ones; it suits small data sets and short runs.

    `distance` "cosine" chooses by direction but, unlike `use_l2_norm`, emits codes and computes losses with lengths.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment_cost: float = 0.25,  # beta
        use_l2_norm: bool = False,  # compare and emit unit vectors (cosine codes)
        distance: Literal["l2", "cosine"] = "l2",
        online_clustering: bool = False,  # keeps the usage buffer `embed_prob` [K]
        revive_below: float = 0.0,  # share of uniform usage under which a code restarts; 0 is off
        entropy_weight: float = 0.0,  # arXiv:2310.05737; 0 leaves the term out
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        if distance not in ("l2", "cosine"):
            raise ValueError(f"distance={distance!r} is unknown; choose l2 or cosine")
        if entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature={entropy_temperature} must be above 0")
        if online_clustering and revive_below > 0:
            raise ValueError(f"online_clustering=true and revive_below={revive_below} exclude each other")
        self.commitment_cost = commitment_cost
        self.use_l2_norm = use_l2_norm
        self.compares_directions = use_l2_norm or distance == "cosine"
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.online_clustering, self.revive_below = online_clustering, revive_below
        self.moves = online_clustering or revive_below > 0
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)
        if online_clustering:
            self.register_buffer("embed_prob", torch.zeros(codebook_size))
        elif revive_below > 0:
            self.register_buffer("embed_prob", torch.full((codebook_size,), 1.0 / codebook_size))
            self.register_buffer("revivals", torch.zeros((), dtype=torch.int64))
            self._updates: int | None = None  # `revivals` on the host, None before it was read
            self.register_load_state_dict_post_hook(_forget_updates)

    def _quantize(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        vectors, tokens = self._unit(features), self._nearest(features)  # [M, C] as emitted, [M]
        codes = self._select(tokens)
        return vectors + (codes - vectors).detach(), tokens, self._losses(features, vectors, codes)

    def normalize(self, latents: torch.Tensor) -> torch.Tensor:
        return F.normalize(latents.float(), dim=1) if self.use_l2_norm else latents.float()

    @torch.no_grad()
    def _nearest(self, features: torch.Tensor) -> torch.Tensor:  # Tokens [M] of latents as they are [M, C]
        codes = self._compared(self.embedding.weight.float())
        return squared_distances(self._compared(features), codes).argmin(dim=1)

    def _compared(self, vectors: torch.Tensor) -> torch.Tensor:  # [..., C] as distances are measured
        return F.normalize(vectors, dim=-1) if self.compares_directions else vectors

    def _losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        commitment = self.commitment_cost * F.mse_loss(vectors, codes.detach())
        codebook = F.mse_loss(codes, vectors.detach())
        losses = {  # weights are in them
            "quantizer_loss": commitment + codebook,
            "commitment_loss": commitment,
            "codebook_loss": codebook,
        }
        if self.entropy_weight:
            # A copy of the codebook: autograd keeps it, and `update_codebook` changes the original before backward.
            codes = self._compared(self.embedding.weight.float().clone())
            affinity = -squared_distances(self._compared(features), codes)
            losses["entropy_loss"] = self.entropy_weight * entropy_loss(affinity, self.entropy_temperature)
            losses["quantizer_loss"] = losses["quantizer_loss"] + losses["entropy_loss"]
        return losses

    def _move(self, features: torch.Tensor, tokens: torch.Tensor) -> CodebookUpdate:
        if self.online_clustering:
            return CodebookUpdate(revived=self._revive_codes(features, tokens))
        return CodebookUpdate(revived=self._restart_dead_codes(features, tokens).sum())

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, dim=-1) if self.use_l2_norm else vectors

    def _select(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._unit(self.embedding(tokens).float())  # gather first: no reference to the table

    def _revive_codes(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Move rarely used codes to their nearest feature of the global batch (arXiv:2307.15139, eq. 4-6).

        Every process reports only its nearest feature per code: K (C + 2) numbers of traffic, whatever the number of
        tokens. Returns a scalar, the number of codes that went more than half of the way.
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
        self.embedding.weight.lerp_(anchors.to(self.embedding.weight.dtype), strength)  # eq. 6
        return (strength > 0.5).sum()

    def _track_usage(self, tokens: torch.Tensor) -> None:
        ones = self.embed_prob.new_ones(tokens.shape)
        counts = all_reduce_sum(torch.zeros_like(self.embed_prob).index_add_(0, tokens, ones))  # [K]
        self.embed_prob.lerp_(counts / counts.sum(), 1.0 - USAGE_DECAY)

    def _restart_dead_codes(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Put rarely used codes on random features [M, C] of the global batch; returns bool [K], the restarted ones.

        The choice depends on the number of updates alone, so all processes, and a resumed run, make the same one.
        """
        self._track_usage(tokens)
        if self._updates is None:
            self._updates = int(
                self.revivals
            )  # the only look at the device; from here on the host counts too
        self._updates += 1
        self.revivals += 1
        pool = all_gather_cat(features)
        generator = torch.Generator(pool.device).manual_seed(self._updates)
        chosen = torch.randint(len(pool), (self.codebook_size,), generator=generator, device=pool.device)
        dead = self.embed_prob < self.revive_below / self.codebook_size
        self.embedding.weight.copy_(torch.where(dead[:, None], pool[chosen], self.embedding.weight))
        self.embed_prob.copy_(torch.where(dead, 1.0 / self.codebook_size, self.embed_prob))  # a fresh average
        return dead


def _forget_updates(quantizer: VectorQuantizer, _: object) -> None:
    quantizer._updates = None  # read the loaded count again
