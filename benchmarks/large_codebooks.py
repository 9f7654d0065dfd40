"""Losses of very large codebooks, forward and backward: ours beside the same mathematics with all scores in memory.

    python benchmarks/large_codebooks.py
    python benchmarks/large_codebooks.py --bits 18 --tokens 32,64,256,8192 --codes 16384 --ibq-tokens 256,1024

The entropy term of LFQ: exact from two halves of the bits (`bit_entropies`) and by a softmax over all 2^bits codes. The
choice of IBQ with its entropies: in chunks that are made twice (`choose_codes`) and by autograd on tokens x codes. Each
measurement has a process of its own; the seconds are the best of `--repeats`, the memory is what its peak adds to
the inputs. Where the dense way would need more than `--limit` megabytes, it is left out. Values and gradients of both
are compared, and the largest difference printed, relative to the largest value. (With 2^18 codes it is the dense way
that rounds: it is off by as much from float64, ours by a hundredth of that.)
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import argument_parser, bytes_now, clock, in_new_process, peak_bytes
from modeling.quantizers.bit_entropy import GUARD, bit_entropies
from modeling.quantizers.ibq import choose_codes, entropy_of_mean

TEMPERATURE = 0.5  # large enough for gradients that can be compared
CODE_DIM, CHUNK = 256, 2**24  # of IBQ: channels as released, and its default number of scores in memory
DENSE_COPIES = {"lfq": 8, "ibq": 10}  # about so many arrays of tokens x codes at the peak

Tensors = tuple[torch.Tensor, ...]


def lfq_factorized(latents: torch.Tensor) -> torch.Tensor:
    """Entropy term of latents [M, bits]."""
    sample, batch = bit_entropies(latents * (4 / TEMPERATURE))
    return sample - batch


def lfq_dense(latents: torch.Tensor) -> torch.Tensor:
    """The same from a list of all codes."""
    bits = latents.shape[1]
    numbers = torch.arange(2**bits, device=latents.device)
    codes = ((numbers[:, None] >> torch.arange(bits, device=latents.device)) & 1).float() * 2 - 1
    logs = (latents @ codes.t() * (2 / TEMPERATURE)).log_softmax(dim=1)
    share = logs.exp()
    mean = share.mean(dim=0)
    return -(share * logs).sum(dim=1).mean() + (mean * (mean + GUARD).log()).sum()


def ibq_chunked(latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Distance of latents [M, C] to their differentiable codes, of [K, C], and the entropy term."""
    rows = max(1, CHUNK // len(codes))
    chosen, _, entropy, shares = choose_codes(latents, codes, temperature=TEMPERATURE, rows=rows)
    return (chosen - latents).square().mean() + entropy - entropy_of_mean(shares)


def ibq_dense(latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The same with one-hot rows, as the paper writes it."""
    scores = latents @ codes.t()
    soft = scores.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, scores.argmax(dim=1, keepdim=True), 1.0)
    chosen = (hard - soft.detach() + soft) @ codes
    logs = (scores / TEMPERATURE).log_softmax(dim=1)
    share = logs.exp()
    entropy = -(share * logs).sum(dim=1).mean()
    return (chosen - latents).square().mean() + entropy - entropy_of_mean(share.mean(dim=0))


WAYS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "lfq": (lfq_factorized, lfq_dense),
    "ibq": (ibq_chunked, ibq_dense),
}


def inputs(kind: str, tokens: int, size: int, device: str) -> Tensors:
    """Random latents, and for IBQ codes; `size` is the number of bits or of codes."""
    draws = torch.Generator().manual_seed(0)
    shapes = [(tokens, size)] if kind == "lfq" else [(tokens, CODE_DIM), (size, CODE_DIM)]
    made = (torch.randn(shape, generator=draws) * 0.3 for shape in shapes)
    return tuple(tensor.to(device).requires_grad_() for tensor in made)


def measure(
    kind: str, dense: bool, tokens: int, size: int, device: str, threads: int, repeats: int
) -> tuple[float, float, list[torch.Tensor]]:
    """Seconds, megabytes on top of the inputs, and [value, *gradients]; meant for a new process."""
    torch.set_num_threads(threads)
    way = WAYS[kind][dense]

    def once(*tensors: torch.Tensor) -> list[torch.Tensor]:
        value = way(*tensors)
        return [value.detach(), *torch.autograd.grad(value, tensors)]

    once(*inputs(kind, 2, 4, device))  # loads kernels and starts threads
    tensors = inputs(kind, tokens, size, device)
    before, seconds, result = bytes_now(device), [], []
    for _ in range(repeats):
        start = clock(device)
        result = once(*tensors)
        seconds.append(clock(device) - start)
    return min(seconds), (peak_bytes(device) - before) / 1e6, [r.detach().cpu() for r in result]


def compare(kind: str, tokens: int, size: int, settings: argparse.Namespace) -> str:
    """A line of the table."""
    shared = (tokens, size, settings.device, settings.threads, settings.repeats)
    seconds, megabytes, ours = in_new_process(measure, kind, False, *shared)
    codes = 2**size if kind == "lfq" else size
    line = f"{kind}  {codes:7d} codes {tokens:6d} tokens   {seconds:8.3f} s {megabytes:8.0f} MB"
    needed = DENSE_COPIES[kind] * 4 * codes * tokens / 1e6
    if needed > settings.limit:
        return f"{line}   dense: about {needed:,.0f} MB, not run"
    dense_seconds, dense_megabytes, theirs = in_new_process(measure, kind, True, *shared)
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    return (
        f"{line}   dense: {dense_seconds:8.3f} s {dense_megabytes:8.0f} MB   "
        f"{dense_seconds / seconds:5.1f} x time, {dense_megabytes / max(megabytes, 1e-3):5.1f} x memory   "
        f"differ by {difference:.0e}"
    )


def main() -> None:
    """Print the table."""
    cuda = torch.cuda.is_available()
    parser = argument_parser(__doc__, torch.get_num_threads(), "cuda" if cuda else "cpu")
    parser.add_argument("--bits", type=int, default=18, help="of LFQ")
    parser.add_argument("--tokens", default="32,64,128,2048", help="LFQ: tokens per batch, comma-separated")
    parser.add_argument("--codes", type=int, default=2**14, help="of IBQ")
    parser.add_argument("--ibq-tokens", default="256,1024,2048", help="the same for IBQ")
    parser.add_argument("--limit", type=float, default=2000, help="megabytes that the dense way may take")
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    print(f"{settings.device}, {settings.threads} threads, best of {settings.repeats}, forward and backward")
    kinds = ("lfq", settings.bits, settings.tokens), ("ibq", settings.codes, settings.ibq_tokens)
    for kind, size, listed in kinds:
        for tokens in map(int, listed.split(",")):
            print(compare(kind, tokens, size, settings), flush=True)


if __name__ == "__main__":
    main()
