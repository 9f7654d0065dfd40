"""How evenly a tokenizer uses its codebook."""

import torch

from common import distributed


class CodebookUsage:
    """Counts tokens; constant memory in the number of images, reduced once over processes.

    Args:
        codebook_size: number of codes K.
    """

    def __init__(self, codebook_size: int):
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, tokens: torch.Tensor) -> None:
        """Count tokens of any shape, values 0 ... K - 1."""
        self.counts += torch.bincount(tokens.reshape(-1).cpu(), minlength=len(self.counts))

    def result(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Over all processes: `codebook_usage` (share of codes seen), `codebook_entropy` in bits (at most log2 K)
        and `codebook_perplexity` = 2^entropy, the number of evenly used codes that would be as diverse."""
        counts = distributed.all_reduce_sum(self.counts.to(device)).double().cpu()
        shares = counts[counts > 0] / counts.sum().clamp(min=1)
        entropy = float(-(shares * shares.log2()).sum())
        return {
            "codebook_usage": float((counts > 0).double().mean()),
            "codebook_entropy": entropy,
            "codebook_perplexity": 2.0**entropy,
        }
