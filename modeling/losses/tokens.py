"""Losses on predicted tokens."""

import torch.nn.functional as F
from torch import Tensor

_IGNORED = -100


def autoregressive_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy (arXiv 2411.00776, equation 1), all positions and samples weighted equally.

    Args:
        logits: `[B, M, V]` with `M >= N`; row k predicts the k-th target, rows from N on are unused.
        targets: int64 `[B, N]` in sequence order.

    Returns:
        Mean loss in float32 (nats per token), and the fraction of positions whose argmax is the target.

    Raises:
        ValueError: fewer logit rows than targets.
    """
    unused = logits.shape[1] - targets.shape[1]
    if unused < 0:
        raise ValueError(f"{logits.shape[1]} logit rows cannot predict {targets.shape[1]} targets")
    correct = logits[:, : targets.shape[1]].argmax(dim=-1) == targets
    # Ignoring the unused rows, rather than slicing them off, avoids a copy of the logits.
    padded = F.pad(targets, (0, unused), value=_IGNORED)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), padded.flatten(), ignore_index=_IGNORED)
    return loss, correct.float().mean()
