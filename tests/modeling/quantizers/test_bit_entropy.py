"""Entropies of independent bits: against a list of all codes, in memory, on one process and on two."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from common.config import REPOSITORY
from modeling.quantizers.bit_entropy import bit_entropies

MEBIBYTE = 2**20


def dense(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from all codes: a code's score is half the sum of its bits' logits, with signs."""
    bits = logits.shape[1]
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
    logs = torch.log_softmax(logits @ (codes.to(logits) - 0.5).t(), dim=1)
    shares, mean = logs.exp(), logs.exp().mean(dim=0)
    return -(shares * logs).sum(dim=1).mean(), -(mean * (mean + 1e-5).log()).sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 6])
def test_values_and_gradients_equal_the_list_of_codes(bits: int) -> None:
    torch.manual_seed(bits)
    logits = (3 * torch.randn(7, bits, dtype=torch.float64)).requires_grad_()
    for ours, theirs in zip(bit_entropies(logits), dense(logits), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
        own, expected = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, theirs))
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-9)
        assert own.abs().max() > 1e-4


def test_certain_bits_have_no_entropy_and_finite_gradients() -> None:
    logits = torch.tensor([[500.0, -500.0, 0.0]]).requires_grad_()
    sample, batch = bit_entropies(logits)
    assert sample.item() == pytest.approx(0.693147, abs=1e-6) == batch.item() + 2e-5
    (sample - batch).backward()
    assert torch.isfinite(logits.grad).all()


# How much more memory than before a function took at its worst. The kernel counts for every program from its start.
CHILD = """
import torch
from modeling.quantizers import LFQ
from tests.modeling.quantizers.test_bit_entropy import dense

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

torch.manual_seed(0)
before = peak()
if {count_codes}:
    latents = torch.randn({tokens}, 18, requires_grad=True)
    sum(dense(latents)).backward()
else:
    latents = torch.randn(8, 18, 16, {tokens} // 128, requires_grad=True)
    LFQ()(latents).losses["quantizer_loss"].backward()
assert latents.grad.abs().sum() > 0
print(peak() - before)
"""


def memory_of(tokens: int, *, count_codes: bool) -> int:
    """Bytes that forward and backward of `tokens` tokens of 18 bits took at most, in a process of their own."""
    program = CHILD.format(tokens=tokens, count_codes=count_codes)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel does not say how much was used"
)
def test_a_batch_of_2_to_the_18_codes_fits_into_little_memory() -> None:
    ours, few = memory_of(2048, count_codes=False), memory_of(32, count_codes=True)
    copy = 4 * 2**18  # bytes of one number per code, for one token
    assert few > 2 * 32 * copy  # the measure sees a list of the codes, of 64 times fewer tokens
    assert ours < few < 2048 * copy
    assert ours < 256 * MEBIBYTE


def _entropies(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    sample, batch = bit_entropies(logits)
    (sample - batch).backward()
    return {"sample": sample.detach(), "batch": batch.detach(), "grad": logits.grad}


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}/init", rank=rank, world_size=2)
    logits = torch.load(store / "logits.pt", weights_only=True)
    torch.save(_entropies(logits.chunk(2)[rank]), store / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_see_the_codes_of_both() -> None:
    logits = 2 * torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    expected = _entropies(logits)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(logits, Path(folder) / "logits.pt")
        multiprocessing.spawn(_worker, (folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank in ranks:
        torch.testing.assert_close(rank["batch"], expected["batch"])
    alone = _entropies(logits[:6])
    assert (alone["batch"] - expected["batch"]).abs() > 0.05
    torch.testing.assert_close((ranks[0]["sample"] + ranks[1]["sample"]) / 2, expected["sample"])
    # Gradients are averaged over processes, which halves what each of them finds for its own tokens.
    torch.testing.assert_close(torch.cat([rank["grad"] for rank in ranks]) / 2, expected["grad"])
