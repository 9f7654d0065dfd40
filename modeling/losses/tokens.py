"""Losses on predicted tokens."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100  # the default of `F.cross_entropy`
_NO_ZERO = 1e-8  # added to denominators


def autoregressive_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy (arXiv 2411.00776, equation 1), all positions and samples weighted equally.

    Row k of the logits `[B, M, V]` predicts target k of int64 `[B, N]`, in sequence order; rows from N on are unused.
    Returns the mean loss in float32 (nats per token), and the fraction of positions whose argmax is the target. Raises
    ValueError for fewer logit rows than targets.
    """
    unused = logits.shape[1] - targets.shape[1]
    if unused < 0:
        raise ValueError(f"{logits.shape[1]} logit rows cannot predict {targets.shape[1]} targets")
    correct = logits[:, : targets.shape[1]].argmax(dim=-1) == targets
    # Ignoring the unused rows, rather than slicing them off, avoids a copy of the logits.
    padded = F.pad(targets, (0, unused), value=_IGNORED)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), padded.flatten(), ignore_index=_IGNORED)
    return loss, correct.float().mean()


def factorized_loss(logits: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of tokens in G sub-tokens (arXiv 2409.04410, section 3.2): the sum of those of its sub-tokens.

    Logits are `[B, N, V_g]` per sub-token, targets int64 `[B, N, G]`. Returns the mean loss in float32 (nats per
    token), and the fraction of tokens whose sub-tokens all are the argmax. ValueError: the shapes don't match.
    """
    shapes = [list(part.shape[:-1]) for part in logits]
    if shapes != [list(targets.shape[:-1])] * targets.shape[-1]:
        raise ValueError(f"logits for {shapes} sub-tokens cannot predict targets {list(targets.shape)}")
    pairs = list(zip(logits, targets.unbind(dim=-1), strict=True))
    losses = [F.cross_entropy(part.flatten(0, 1).float(), target.flatten()) for part, target in pairs]
    correct = torch.stack([part.argmax(dim=-1) == target for part, target in pairs]).all(dim=0)  # all G right
    return torch.stack(losses).sum(), correct.float().mean()  # log of a product of probabilities


def masked_token_loss(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor,
    label_smoothing: float = 0.1,
    unmasked_weight: float = 0.1,  # of a visible token; a hidden one weighs 1
    reduce_mean: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of hidden tokens (MaskGIT, arXiv 2202.04200, equation 2), the visible ones with a small weight.

    Args:
        logits, tokens: `[B, N, V]` and the true ones, int64 `[B, N]`.
        mask: bool `[B, N]`, true where the token was hidden.
        label_smoothing: share of the target that is spread evenly over the codebook, in `[0, 1]`.
        reduce_mean: mean of a scalar over the processes that share a batch. The sum of weights is then that of the
            whole batch, so that averaged gradients equal those of one process; None: this process has it all.

    Returns:
        Weighted mean over the whole batch in float32 (nats per token), and the mean over samples of the share
        of hidden tokens that are the argmax. Shapes that don't belong together raise ValueError.
    """
    if logits.shape[:2] != tokens.shape or mask.shape != tokens.shape:
        shapes = f"logits {list(logits.shape)}, tokens {list(tokens.shape)}, mask {list(mask.shape)}"
        raise ValueError(f"{shapes}: expected [B, N, V], [B, N] and [B, N]")
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), tokens.flatten(), label_smoothing=label_smoothing, reduction="none"
    ).view_as(tokens)
    weights = mask.float() + unmasked_weight * (~mask).float()  # [B, N]
    total = weights.sum() if reduce_mean is None else reduce_mean(weights.sum())
    loss = (weights * losses).sum() / (total + _NO_ZERO)
    correct = (logits.argmax(dim=-1) == tokens) & mask  # visible tokens do not count
    return loss, (correct.sum(dim=1) / (mask.sum(dim=1) + _NO_ZERO)).mean()
