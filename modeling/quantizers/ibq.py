"""Index backpropagation quantization (arXiv:2412.02692): the choice of a code is differentiable, all codes learn."""

import torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from common.distributed import all_reduce_mean
from modeling.quantizers.base import CodebookQuantizer

GUARD = 1e-5  # inside the logarithm of the entropy of mean shares, as released


class _Choice(torch.autograd.Function):
    """The code with the largest product for every latent, differentiated as if chosen softly.

    Scores s = v e^T of latents v [M, C] and codes e [K, C] are made a few rows at a time and never kept: backward
    makes them again, and applies the derivatives of both softmaxes (of s, and of s / T) by their formulas.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, vectors: torch.Tensor, codes: torch.Tensor, temperature: float, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Chosen codes [M, C], tokens [M], mean entropy of the shares softmax(s / T) in nats, their mean [K].

        `temperature` 0 leaves the last two at 0.
        """
        tokens = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        totals, sharp_totals = vectors.new_empty(len(vectors)), vectors.new_zeros(len(vectors))
        entropies, shares = vectors.new_zeros(len(vectors)), codes.new_zeros(len(codes))
        for part in _parts(len(vectors), rows):
            scores = vectors[part] @ codes.t()
            tokens[part] = scores.argmax(dim=1)
            totals[part] = scores.logsumexp(dim=1)
            if temperature:
                scores.div_(temperature)
                sharp_totals[part] = scores.logsumexp(dim=1)
                logs = scores.sub_(sharp_totals[part, None])
                share = logs.exp()
                entropies[part] = -torch.einsum("mk,mk->m", share, logs)
                shares += share.sum(dim=0)
        ctx.save_for_backward(vectors, codes, tokens, totals, sharp_totals, entropies)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.mark_non_differentiable(tokens)
        return codes[tokens], tokens, entropies.mean(), shares / len(vectors)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, chosen: torch.Tensor, _: None, entropy: torch.Tensor, shares: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Gradients of latents [M, C] and codes [K, C], given those of the four outputs."""
        vectors, codes, tokens, totals, sharp_totals, entropies = ctx.saved_tensors
        to_vectors, to_codes = torch.empty_like(vectors), torch.zeros_like(codes)
        for part in _parts(len(vectors), ctx.rows):
            scores = vectors[part] @ codes.t()
            # d/ds of <u, sum_j p_j e_j> is p (u e - sum p u e).
            share = (scores - totals[part, None]).exp_()
            slope = chosen[part] @ codes.t()
            slope.sub_(torch.einsum("mk,mk->m", share, slope)[:, None]).mul_(share)
            if ctx.temperature:
                logs = scores.div_(ctx.temperature).sub_(sharp_totals[part, None])
                torch.exp(logs, out=share)
                # Of the entropy: -p (log p + H); of the mean shares: p (g - sum p g).
                logs.add_(entropies[part, None]).mul_(-entropy)
                logs.add_(shares).sub_((share @ shares)[:, None])
                slope.addcmul_(logs, share, value=1.0 / (ctx.temperature * len(vectors)))
            to_vectors[part] = slope @ codes
            to_codes.addmm_(slope.t(), vectors[part])
        to_codes.index_add_(0, tokens, chosen)  # the hard choice itself
        return to_vectors, to_codes, None, None


def choose_codes(
    vectors: torch.Tensor, codes: torch.Tensor, *, temperature: float, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The code with the largest product with every latent, and how clear and how even the choices are.

    The chosen codes are those of (onehot - sg[p] + p) e with p = softmax(v e^T) (arXiv:2412.02692, section 3): their
    value is that of the hard choice, their gradient reaches latents and all codes through p.

    Args:
        vectors: latents v [M, C].
        codes: e [K, C], of the same type.
        temperature: T of the shares softmax(v e^T / T) whose entropies are returned, above 0; 0 leaves them out.
        rows: latents whose scores [rows, K] are in memory at a time.

    Returns:
        Chosen codes [M, C], tokens int64 [M], the mean entropy of the shares in nats (a scalar), and the mean of the
        shares [K]; all but the tokens with gradient, for one backward pass.
    """
    return _Choice.apply(vectors, codes, temperature, rows)


class IBQ(CodebookQuantizer):
    """Codes compete by inner product; the gradient of every choice reaches all of them, which keeps large codebooks
    in use (arXiv:2412.02692).

    Training with K codes and M latents takes three passes over the M x K scores, in slices of `chunk` of them; four
    tensors of that size are all that is ever in memory, apart from latents, codes and their gradients. Evaluation
    is a search for the largest product.

    Losses, with v the latents, q the differentiable codes and h the hard ones: `commitment_loss` = mean((sg[h] -
    v)^2), `codebook_loss` = mean((q - v)^2) + beta mean((h - sg[v])^2), with a weight `entropy_loss` = that weight
    times (mean entropy - entropy of the mean over the latents of all processes), and `quantizer_loss` = the sum of
    all three. In eval mode nothing is differentiable in the choice, and the entropy is left out.

    Args:
        codebook_size: number of codes K.
        code_dim: channels C of latents and codes.
        commitment_cost: weight beta of the term that moves hard codes towards latents. (The paper calls the other
            direction by that name; its weight is 1.)
        entropy_weight: weight of the entropy loss (arXiv:2310.05737) in `quantizer_loss`; 0 leaves it out.
        entropy_temperature: of the assignments in it.
        chunk: scores in memory at a time; at least one row of K is made whatever it says.

    Raises:
        ValueError: a size or the temperature is not positive.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment_cost: float = 0.25,
        entropy_weight: float = 0.05,
        entropy_temperature: float = 0.01,
        chunk: int = 2**24,
    ) -> None:
        super().__init__(codebook_size, code_dim)
        if entropy_temperature <= 0 or chunk < 1:
            raise ValueError(
                f"entropy_temperature={entropy_temperature} must be above 0, chunk={chunk} must be at least 1"
            )
        self.commitment_cost = commitment_cost
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.rows = max(1, chunk // codebook_size)
        self.embedding = nn.Embedding(codebook_size, code_dim)  # drawn from N(0, 1)

    def _quantize(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        if not self.training:
            tokens = self._nearest(vectors)
            chosen = self._select(tokens)
            return chosen, tokens, self._losses(vectors, chosen, tokens)
        temperature = self.entropy_temperature if self.entropy_weight else 0.0
        chosen, tokens, entropy, shares = choose_codes(
            vectors, self.embedding.weight.float(), temperature=temperature, rows=self.rows
        )
        losses = self._losses(vectors, chosen, tokens)
        if self.entropy_weight:
            losses["entropy_loss"] = self.entropy_weight * (entropy - entropy_of_mean(shares))
            losses["quantizer_loss"] = losses["quantizer_loss"] + losses["entropy_loss"]
        return chosen, tokens, losses

    def _select(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens).float()

    @torch.no_grad()
    def _nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Tokens [M] of the largest products with latents [M, C], with `chunk` scores in memory."""
        codes = self.embedding.weight.float().t()
        parts = [(vectors[part] @ codes).argmax(dim=1) for part in _parts(len(vectors), self.rows)]
        return torch.cat(parts)

    def _losses(
        self, vectors: torch.Tensor, chosen: torch.Tensor, tokens: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Distances of latents [M, C] and codes, differentiable [M, C] and hard (arXiv:2412.02692, section 3)."""
        hard = self._select(tokens)
        commitment = F.mse_loss(vectors, hard.detach())
        codebook = F.mse_loss(chosen, vectors) + self.commitment_cost * F.mse_loss(hard, vectors.detach())
        return {
            "quantizer_loss": commitment + codebook,
            "commitment_loss": commitment,
            "codebook_loss": codebook,
        }


def entropy_of_mean(shares: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the mean over processes of `shares` [K]: a global value with the gradient of the local part.

    The averaging of gradients over processes completes the gradient.
    """
    shares = shares + (all_reduce_mean(shares) - shares).detach()
    return -(shares * (shares + GUARD).log()).sum()


def _parts(count: int, rows: int) -> list[slice]:
    """Slices of at most `rows` of `count` rows."""
    return [slice(start, start + rows) for start in range(0, count, rows)]
