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
        """Chosen codes [M, C], tokens [M], mean entropy of the shares softmax(s / T), their mean [K] (T = 0: zeros)."""
        tokens = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        totals, sharp_totals = vectors.new_empty(len(vectors)), vectors.new_zeros(len(vectors))
        entropies, shares = vectors.new_zeros(len(vectors)), codes.new_zeros(len(codes))
        for part in _parts(len(vectors), rows):
            scores = vectors[part] @ codes.t()
            tokens[part] = scores.argmax(dim=1)
            totals[part] = scores.logsumexp(dim=1)  # backward needs the softmax again
            if temperature:
                scores.div_(temperature)
                sharp_totals[part] = scores.logsumexp(dim=1)
                logs = scores.sub_(sharp_totals[part, None])  # in place: scores are the memory
                share = logs.exp()
                entropies[part] = -torch.einsum("mk,mk->m", share, logs)
                shares += share.sum(dim=0)
        ctx.save_for_backward(vectors, codes, tokens, totals, sharp_totals, entropies)
        ctx.temperature, ctx.rows = temperature, rows
        ctx.mark_non_differentiable(tokens)  # integers
        return codes[tokens], tokens, entropies.mean(), shares / len(vectors)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, chosen: torch.Tensor, _: None, entropy: torch.Tensor, shares: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
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
                torch.exp(logs, out=share)  # reuses the memory of p
                # Of the entropy: -p (log p + H); of the mean shares: p (g - sum p g).
                logs.add_(entropies[part, None]).mul_(-entropy)
                logs.add_(shares).sub_((share @ shares)[:, None])
                slope.addcmul_(logs, share, value=1.0 / (ctx.temperature * len(vectors)))
            to_vectors[part] = slope @ codes
            to_codes.addmm_(slope.t(), vectors[part])  # sums over the parts
        to_codes.index_add_(0, tokens, chosen)  # the hard choice itself
        return to_vectors, to_codes, None, None


def choose_codes(
    vectors: torch.Tensor, codes: torch.Tensor, *, temperature: float, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes with the largest product with every latent, and how clear and how even the choices are.

    The chosen codes are those of (onehot - sg[p] + p) e with p = softmax(v e^T) (arXiv:2412.02692, section 3): their
    value is that of the hard choice, their gradient reaches latents and all codes through p.

    Args:
        vectors, codes: latents v [M, C] and codes e [K, C] of the same type.
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

    Training takes three passes over the M x K scores of M latents and K codes, `chunk` of them at a time; four such
    slices are in memory at most. Evaluation is a search for the largest product.

    Losses, with v the latents, q the differentiable codes and h the hard ones: `commitment_loss` = mean((sg[h] - v)^2),
    `codebook_loss` = mean((q - v)^2) + beta mean((h - sg[v])^2), `entropy_loss` = weight (mean entropy - entropy of the
    mean over the latents of all processes), and `quantizer_loss` = their sum. In eval mode nothing is differentiable in
    the choice, and the entropy is left out.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        code_dim: int,
        commitment_cost: float = 0.25,  # beta; the paper gives that name to the other direction, of weight 1
        entropy_weight: float = 0.05,  # arXiv:2310.05737; 0 leaves the term out
        entropy_temperature: float = 0.01,
        chunk: int = 2**24,  # scores in memory at a time, at least one row of K
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
        if not self.training:  # no collectives: processes may evaluate alone
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
        codes = self.embedding.weight.float().t()
        parts = [(vectors[part] @ codes).argmax(dim=1) for part in _parts(len(vectors), self.rows)]
        return torch.cat(parts)

    def _losses(
        self, vectors: torch.Tensor, chosen: torch.Tensor, tokens: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        hard = self._select(tokens)  # [M, C], gradient to the chosen codes only
        commitment = F.mse_loss(vectors, hard.detach())
        codebook = F.mse_loss(chosen, vectors) + self.commitment_cost * F.mse_loss(hard, vectors.detach())
        return {
            "quantizer_loss": commitment + codebook,
            "commitment_loss": commitment,
            "codebook_loss": codebook,
        }


def entropy_of_mean(shares: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the mean over processes of `shares` [K], with the gradient of the local part."""
    shares = shares + (all_reduce_mean(shares) - shares).detach()  # DDP averages the gradient
    return -(shares * (shares + GUARD).log()).sum()


def _parts(count: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, count, rows)]
