"""How well a codebook is used in training: usage, perplexity, dead codes and their revival, alarm at a collapse."""

import torch
from torch import nn

from common.distributed import all_reduce_sum, world_size

DECAY = 0.99
HORIZON = 100  # batches without a token after which a code counts as dead
COLLAPSED, JUDGED_FROM = 0.02, 500  # share of reachable codes; step, since young codebooks look collapsed
LARGEST = 2**30  # codes; the two buffers are 8 GiB


class CodebookHealth(nn.Module):
    """Running statistics of the codes that all processes choose; `update` never waits for the device.

    The buffers (two numbers per code) are checkpointed, so that curves continue after a resume. Usage is bounded by the
    tokens of 100 batches: with 4096 evenly drawn tokens per batch, 79 % of 2^18 codes.

    Raises:
        ValueError: there are more than 2^30 codes.
    """

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        if codebook_size > LARGEST:
            raise ValueError(
                f"tokenizer.quantizer has {codebook_size} codes, too many to count in training; expected at most"
                f" {LARGEST} (bits=30)"
            )
        self.codebook_size = codebook_size
        self.register_buffer("share", torch.zeros(codebook_size))
        self.register_buffer("idle", torch.full((codebook_size,), HORIZON, dtype=torch.int32))
        self.alarmed = False
        self.reach = codebook_size  # codes that the tokens of 100 batches can choose

    @torch.no_grad()
    def update(self, tokens: torch.Tensor, revived: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Count the tokens (int64, any shape) of one training batch of this process.

        Args:
            revived: scalar, number of codes that the quantizer moved to fresh places; None if it never does.

        Returns:
            Scalars to log: `codebook_usage`, the share of codes chosen within the last 100 batches; `dead_codes`, the
            number of the others; `codebook_perplexity`, exp of the entropy of the moving average of shares (decay
            0.99): so many evenly used codes would be as diverse; `revived_codes`, if counted.
        """
        tokens = tokens.reshape(-1)
        self.reach = min(self.codebook_size, HORIZON * len(tokens) * world_size())
        ones = self.share.new_ones(tokens.shape)
        counts = all_reduce_sum(torch.zeros_like(self.share).index_add_(0, tokens, ones))
        self.idle.add_(1).mul_(counts == 0)  # batches since a token chose the code
        self.share.lerp_(counts / counts.sum(), 1.0 - DECAY)
        share = self.share / self.share.sum()  # the average starts at 0
        entropy = -torch.special.xlogy(share, share).sum()  # nats; 0 log 0 = 0
        dead = (self.idle >= HORIZON).sum()
        scalars = {
            "codebook_usage": 1.0 - dead / self.codebook_size,
            "codebook_perplexity": entropy.exp(),
            "dead_codes": dead.float(),
        }
        return scalars if revived is None else {**scalars, "revived_codes": revived.float()}

    def warning(self, step: int, scalars: dict[str, float]) -> str | None:
        """A message, once, when nearly all codes are out of use; None if all is well.

        `scalars` are means of the results of `update` since the last log line.
        """
        usage, perplexity = scalars["codebook_usage"], scalars["codebook_perplexity"]
        few = max(2.0, COLLAPSED * self.reach)
        collapsed = step >= JUDGED_FROM and (usage * self.codebook_size < few or perplexity < few / 2)
        fresh, self.alarmed = collapsed and not self.alarmed, collapsed
        if not fresh:
            return None
        return (
            f"step {step}: the codebook of the tokenizer collapses: {usage:.1%} of"
            f" {self.codebook_size} codes in use, perplexity {perplexity:.1f}. Try a soft start by"
            " losses.quantize_start and _end, a larger batch, or a lower optimizer.learning_rate; with"
            " quantizer.name=vq online_clustering=true (or revive_below=0.3), or use_l2_norm=true with a small"
            " code_dim; with lfq, bsq and ibq a larger entropy_weight"
        )
