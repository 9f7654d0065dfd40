"""Index backpropagation: reference values and gradients, memory, layout, two processes against one."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import multiprocessing
from torch.nn import functional as F

from modeling.quantizers import QUANTIZERS
from modeling.quantizers.ibq import IBQ, choose_codes, entropy_of_mean
from modeling.tokenizers.vqgan import VQGAN
from tests.parity import assert_close, fill_values, filled, golden, manifest, state_layout

ROOT = Path(__file__).resolve().parents[3]
CODEBOOK = fill_values("quantize.embedding.weight", torch.empty(64, 8))
BYTES = 4  # of a float32


def make(codebook: torch.Tensor, **options) -> IBQ:
    quantizer = IBQ(codebook_size=len(codebook), code_dim=codebook.shape[1], **options)
    quantizer.embedding.weight.data.copy_(codebook)
    return quantizer


@pytest.mark.parametrize("chunk", [1, 5 * 64, 2**24])
def test_values_and_gradients_equal_the_reference(chunk: int) -> None:
    data = golden("ibq_small")
    upstream = torch.from_numpy(data["quant_upstream"])
    terms = {
        "zq": lambda output: (output.quantized * upstream).sum(),
        "quant": lambda output: output.losses["commitment_loss"] + output.losses["codebook_loss"],
        "entropy": lambda output: output.losses["entropy_loss"] / 0.05,
    }
    for name, term in terms.items():
        quantizer = make(CODEBOOK, chunk=chunk)
        latents = torch.from_numpy(data["quant_z"]).requires_grad_()
        output = quantizer(latents)
        assert (output.tokens.numpy() == data["quant_indices"]).all()
        assert_close(output.quantized, data["quant_zq"], atol=1e-6)
        value = term(output)
        value.backward()
        # A temperature of 0.01 makes rounding errors of the scores a hundred times larger.
        share = 1e-3 if name == "entropy" else 1e-5
        scale = share * max(
            abs(data[f"quant_grad_{name}_z"]).max(), abs(data[f"quant_grad_{name}_codebook"]).max()
        )
        assert_close(latents.grad, data[f"quant_grad_{name}_z"], atol=scale)
        assert_close(quantizer.embedding.weight.grad, data[f"quant_grad_{name}_codebook"], atol=scale)
        if name != "zq":
            assert_close(value, data[f"quant_{name}_loss"], atol=0, rtol=1e-5)
    total = output.losses["commitment_loss"] + output.losses["codebook_loss"] + output.losses["entropy_loss"]
    torch.testing.assert_close(output.losses["quantizer_loss"], total)


def naive(vectors: torch.Tensor, codes: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    """The definition, with all scores at once."""
    scores = vectors @ codes.t()
    soft, hard = scores.softmax(dim=1), F.one_hot(scores.argmax(dim=1), len(codes)).to(scores)
    logs = (scores / temperature).log_softmax(dim=1)
    return (
        (hard - soft.detach() + soft) @ codes,
        -(logs.exp() * logs).sum(dim=1).mean(),
        logs.exp().mean(dim=0),
    )


def test_all_gradients_equal_those_of_the_definition() -> None:
    torch.manual_seed(0)
    given = torch.randn(23, 5, dtype=torch.float64), torch.randn(17, 5, dtype=torch.float64)
    weights = torch.randn(23, 5, dtype=torch.float64), torch.randn(17, dtype=torch.float64)
    results = []
    for function in (naive, lambda *a: choose_codes(*a[:2], temperature=a[2], rows=4)):
        vectors, codes = (x.clone().requires_grad_() for x in given)
        outputs = [x for x in function(vectors, codes, 0.7) if x.dtype == torch.float64]
        chosen, entropy, shares = outputs
        loss = (chosen * weights[0]).sum() + 3 * entropy + (shares * weights[1]).sum()
        results.append([*outputs, *torch.autograd.grad(loss, (vectors, codes))])
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


def test_without_entropy() -> None:
    torch.manual_seed(0)
    codes, latents = torch.randn(12, 4), torch.randn(2, 4, 3, 2)
    losses = []
    for weight in (0.0, 1e-12):
        quantizer = make(codes, entropy_weight=weight)
        output = quantizer(latents)
        (output.quantized.square().sum() + output.losses["quantizer_loss"]).backward()
        losses.append((output.losses["quantizer_loss"], quantizer.embedding.weight.grad))
        assert ("entropy_loss" in output.losses) == (weight > 0)
    torch.testing.assert_close(losses[0], losses[1])
    assert (losses[0][1].abs().sum(dim=1) > 0).all(), "every code learns"


def test_evaluation_searches_and_reads() -> None:
    torch.manual_seed(0)
    quantizer, latents = make(torch.randn(50, 4), chunk=100).train(), torch.randn(2, 4, 3, 5)
    trained = quantizer(latents)
    output = quantizer.eval()(latents)
    assert torch.equal(output.tokens, trained.tokens) and torch.equal(output.quantized, trained.quantized)
    assert torch.equal(quantizer.encode(latents), output.tokens)
    assert torch.equal(quantizer.lookup(output.tokens).view(2, 4, 3, 5), output.quantized)
    assert "entropy_loss" not in output.losses
    torch.testing.assert_close(output.losses["commitment_loss"], trained.losses["commitment_loss"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.train()(latents).tokens, output.tokens)


def test_tokenizer_equals_the_reference() -> None:
    data = golden("ibq_small")
    quantizer = dict(codebook_size=128, code_dim=16)
    model = filled(
        lambda: VQGAN(
            quantizer=IBQ(**quantizer),
            image_size=64,
            base_channels=32,
            multipliers=(1, 1, 2),
            num_blocks=1,
            z_channels=16,
        )
    )
    images = torch.from_numpy(data["tok_image_u8"]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        assert_close(model.encode_latents(images), data["tok_quant_conv_out"], atol=2e-4)
        clear = data["tok_index_gap"] > 1e-4
        assert (model.encode(images).numpy() == data["tok_indices"])[clear].all() and clear.mean() > 0.99
        codes = model.quantize.lookup(torch.from_numpy(data["tok_indices"]).long())
        decoded = 2 * model.decode_latents(codes.view(2, 16, 16, 16)) - 1
    assert_close(decoded[:, :, ::2, ::2], data["tok_decoder_sub"], atol=2e-4)
    stored = data["tok_decoder_patch"]
    patches = decoded.unfold(2, 16, 8).unfold(3, 16, 8).flatten(2, 3)  # somewhere on a grid of 8 pixels
    assert (patches - torch.from_numpy(stored)[:, :, None]).abs().amax(dim=(0, 1, 3, 4)).min() < 2e-4


def test_released_layout() -> None:
    with torch.device("meta"):
        model = VQGAN(quantizer=IBQ(codebook_size=16384, code_dim=256), num_blocks=4)
    expected = manifest("ibq_tokenizer_16384")["model"]
    assert state_layout(model) == expected
    assert QUANTIZERS["ibq"] is IBQ and model.bits_per_image == 256 * 14


MEMORY = """
import sys, torch
from modeling.quantizers.ibq import IBQ
def peak():  # of this process alone: what getrusage tells may be the parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
torch.set_num_threads(1)
codes, channels, batch, train = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "train"
torch.manual_seed(0)
quantizer = IBQ(codebook_size=codes, code_dim=channels).train(train)
latents = 0.1 * torch.randn(batch, channels, 16, 16, requires_grad=True)
before = peak()
output = quantizer(latents)
if train:
    (output.losses["quantizer_loss"] + output.quantized.mean()).backward()
    assert torch.isfinite(quantizer.embedding.weight.grad).all()
print((peak() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("channels", "batch", "mode"),
    [
        (16, 2, "eval"),
        (16, 1, "train"),
        pytest.param(256, 8, "train", marks=pytest.mark.slow),
    ],
)
def test_memory_at_the_largest_codebook(channels: int, batch: int, mode: str) -> None:
    """A process of its own: 2^18 codes, `batch` images of 256 tokens. Published training has 8 of them, whose scores
    are 2 GB per tensor, of which the definition holds at least five in training (see `naive`) and one in search."""
    codes, slice_bytes = 2**18, 2**24 * BYTES
    command = [sys.executable, "-c", MEMORY, str(codes), str(channels), str(batch), mode]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    used, dense = int(done.stdout), batch * 256 * codes * BYTES * (5 if mode == "train" else 1)
    learned = 2 * codes * channels * BYTES  # the gradient, and the term of it that is scattered
    bound = 6 * slice_bytes + (learned if mode == "train" else 0)
    assert slice_bytes <= used <= bound < dense, f"{used / 2**20:.0f} MB"


def _train_once(latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses and gradients of the codebook for latents [B, 6, 1, N]."""
    codes = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    quantizer = make(codes, entropy_temperature=0.5, chunk=70)
    output = quantizer(latents)
    entropy = entropy_of_mean(choose_codes_of(quantizer, latents))
    output.losses["quantizer_loss"].backward()
    return {"codes": quantizer.embedding.weight.grad, "entropy": entropy.detach()}


def choose_codes_of(quantizer: IBQ, latents: torch.Tensor) -> torch.Tensor:
    vectors = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    return choose_codes(vectors, quantizer.embedding.weight, temperature=0.5, rows=3)[3]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}/init", rank=rank, world_size=2)
    latents = torch.load(store / "latents.pt", weights_only=True)
    torch.save(_train_once(latents[rank * 4 : rank * 4 + 4]), store / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_like_one() -> None:
    latents = torch.randn(8, 6, 1, 5, generator=torch.Generator().manual_seed(2))
    expected = _train_once(latents)
    local = _train_once(latents[:4])["entropy"]
    with tempfile.TemporaryDirectory() as folder:
        torch.save(latents, Path(folder) / "latents.pt")
        multiprocessing.spawn(_worker, (folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    mean = (ranks[0]["codes"] + ranks[1]["codes"]) / 2
    torch.testing.assert_close(mean, expected["codes"], atol=1e-6, rtol=1e-4)
    for rank in ranks:
        torch.testing.assert_close(rank["entropy"], expected["entropy"])
    assert (local - expected["entropy"]).abs() > 0.01


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(codebook_size=0), "codebook_size=0"),
        (dict(entropy_temperature=0.0), "entropy_temperature=0.0"),
        (dict(chunk=0), "chunk=0"),
    ],
)
def test_rejected_options(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        IBQ(**{"codebook_size": 4, "code_dim": 2, **options})
