"""EMA codebook: reference updates, idle codes, restarts, one process against two."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from modeling.quantizers import QUANTIZERS, EMAVectorQuantizer
from tests.modeling.quantizers.steps import step
from tests.parity import assert_close, golden


def make(codebook: torch.Tensor, **options) -> EMAVectorQuantizer:
    """A quantizer with the given codebook [K, C], its averages at the codes."""
    quantizer = EMAVectorQuantizer(codebook_size=len(codebook), code_dim=codebook.shape[1], **options)
    quantizer.embedding.weight.copy_(codebook)
    quantizer.embed_avg.copy_(
        codebook * (quantizer.cluster_size[:, None] if quantizer.cluster_size.any() else 1)
    )
    return quantizer


def rows(x: torch.Tensor) -> torch.Tensor:
    """[M, C] as latents [1, C, 1, M]."""
    return x.t()[None, :, None]


def test_three_updates_equal_the_reference() -> None:
    data = golden("ut_vq_ema")
    quantizer = make(torch.from_numpy(data["embedding_init"]), initial_count=0.0)
    for i in range(3):
        output = step(quantizer, rows(torch.from_numpy(data[f"x{i}"])))
        assert (output.tokens[0].numpy() == data[f"indices{i}"]).all()
        assert_close(output.quantized[0, :, 0].t(), data[f"zq{i}"], atol=1e-5, rtol=1e-4)
        for name, value in {
            "commit_loss": output.losses["quantizer_loss"],
            "cluster_size": quantizer.cluster_size,
            "embed_avg": quantizer.embed_avg,
            "embedding": quantizer.embedding.weight,
        }.items():
            assert_close(value, data[f"{name}{i}"], atol=1e-5, rtol=1e-4)


def test_only_the_encoder_gets_a_gradient() -> None:
    quantizer = make(torch.randn(16, 4))
    latents = torch.randn(2, 4, 3, 5, requires_grad=True)
    before = quantizer.embedding.weight.clone()
    output = step(quantizer, latents)
    codes = torch.nn.functional.embedding(output.tokens, before).transpose(1, 2)
    torch.testing.assert_close(output.quantized.flatten(2), codes)  # looked up before the update
    (output.quantized.sum() + output.losses["quantizer_loss"]).backward()
    expected = 1 + 0.5 * (latents.detach().flatten(2) - codes) / latents.numel()
    torch.testing.assert_close(latents.grad.flatten(2), expected)
    assert not any(p.requires_grad for p in quantizer.parameters())
    assert not torch.equal(quantizer.embedding.weight, before)


def test_idle_codes_stay_and_codes_converge_to_means() -> None:
    codebook = torch.tensor([[0.0, 0.0], [10.0, 10.0], [-50.0, 50.0]])
    quantizer = make(codebook, decay=0.9)
    left, right = torch.tensor([1.0, 2.0]), torch.tensor([9.0, 12.0])
    for _ in range(200):
        step(quantizer, rows(torch.stack([left - 0.5, left + 0.5, right])))
    torch.testing.assert_close(quantizer.embedding.weight[:2], torch.stack([left, right]), atol=1e-3, rtol=0)
    torch.testing.assert_close(quantizer.cluster_size[:2], torch.tensor([2.0, 1.0]), atol=1e-3, rtol=0)
    quantizer = make(codebook)
    step(quantizer, rows(left[None]))
    torch.testing.assert_close(quantizer.embedding.weight[1:], codebook[1:], atol=0, rtol=1e-3)


def test_dead_codes_restart_with_their_averages() -> None:
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(codebook_size=64, code_dim=8, revive_below=0.1)
    for _ in range(
        60
    ):  # usage of a code that is never chosen falls below a tenth only after many steps of 0.99
        quantizer.embed_prob.mul_(0.9)
        tokens = step(quantizer, torch.randn(8, 8, 1, 64)).tokens
    assert tokens.unique().numel() > 56 and quantizer.revivals == 60
    codes = quantizer.embed_avg / quantizer.cluster_size[:, None]
    torch.testing.assert_close(codes, quantizer.embedding.weight, atol=1e-3, rtol=1e-3)


def test_rejected_options() -> None:
    assert QUANTIZERS["ema_vq"] is EMAVectorQuantizer
    for options in (dict(decay=1.0), dict(epsilon=0.0), dict(initial_count=-1.0), dict(codebook_size=0)):
        with pytest.raises(ValueError, match=next(iter(options))):
            EMAVectorQuantizer(**{"codebook_size": 4, "code_dim": 2, **options})


def _run_steps(batches: torch.Tensor) -> dict[str, torch.Tensor]:
    codebook = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    quantizer = make(codebook, revive_below=0.5)
    tokens = torch.stack([step(quantizer, latents).tokens for latents in batches])
    return {**quantizer.state_dict(), "tokens": tokens}


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}/init", rank=rank, world_size=2)
    batches = torch.load(store / "batches.pt", weights_only=True)
    torch.save(_run_steps(batches[:, rank * 4 : rank * 4 + 4]), store / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_update_the_codebook_like_one() -> None:
    batches = torch.randn(3, 8, 6, 1, 5, generator=torch.Generator().manual_seed(2))
    expected = _run_steps(batches)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(batches, Path(folder) / "batches.pt")
        multiprocessing.spawn(_worker, (folder,), nprocs=2)
        ranks = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(torch.cat([rank["tokens"] for rank in ranks], dim=1), expected["tokens"])
    for rank in ranks:
        for name in ("embedding.weight", "cluster_size", "embed_avg"):
            torch.testing.assert_close(rank[name], expected[name], atol=1e-5, rtol=1e-5)
