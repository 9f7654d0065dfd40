"""Vector quantizer: reference values and gradients, clustering, autocast, one process against two."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from modeling.quantizers import VectorQuantizer
from tests.modeling.quantizers.steps import step
from tests.parity import assert_close, assert_tokens_match, golden, manifest, state_layout


def make(codebook: torch.Tensor, **options) -> VectorQuantizer:
    """A quantizer with the given codebook [K, C]."""
    quantizer = VectorQuantizer(codebook_size=codebook.shape[0], code_dim=codebook.shape[1], **options)
    quantizer.embedding.weight.data.copy_(codebook)
    return quantizer


@pytest.mark.parametrize(("prefix", "use_l2_norm"), [("l2", True), ("plain", False)])
def test_values_and_gradients_equal_the_reference(prefix: str, use_l2_norm: bool) -> None:
    data = {
        k.removeprefix(f"{prefix}_"): v for k, v in golden("vq_quantizer").items() if k.startswith(prefix)
    }
    quantizer = make(torch.from_numpy(data["embedding"]), use_l2_norm=use_l2_norm)
    latents = torch.from_numpy(data["z"]).requires_grad_()
    output = quantizer(latents)
    (output.losses["quantizer_loss"] + (output.quantized * torch.from_numpy(data["w"])).sum()).backward()

    assert_close(output.quantized, data["zq"], atol=1e-6)
    assert_tokens_match(output.tokens, data["indices"], data["margin"])
    for name in ("quantizer_loss", "commitment_loss", "codebook_loss"):
        assert_close(output.losses[name], data[name], atol=1e-7, rtol=1e-5)
    assert_close(latents.grad, data["grad_z"], atol=1e-6, rtol=1e-5)
    assert_close(quantizer.embedding.weight.grad, data["grad_embedding"], atol=1e-7, rtol=1e-5)
    entries = quantizer.lookup(torch.arange(8)[None])
    assert_close(entries[0, :, 0].t(), data["entry_0_to_7"], atol=1e-6)


def test_lookup_of_tokens_is_the_quantized_output() -> None:
    quantizer = make(torch.randn(32, 6), use_l2_norm=True)
    latents = torch.randn(3, 6, 1, 5)
    output = quantizer(latents)
    assert output.tokens.shape == (3, 5) and output.tokens.dtype == torch.int64
    torch.testing.assert_close(quantizer.lookup(output.tokens), output.quantized)
    assert torch.equal(quantizer.encode(latents), output.tokens)


def test_two_dimensional_latents_give_row_major_tokens() -> None:
    quantizer = make(torch.randn(32, 6))
    latents = torch.randn(2, 6, 3, 4)
    output = quantizer(latents)
    flat = quantizer(latents.flatten(2).unsqueeze(2))
    assert output.quantized.shape == latents.shape
    assert torch.equal(output.tokens, flat.tokens)
    assert torch.equal(output.quantized.flatten(2), flat.quantized.flatten(2))


def test_clustering_steps_equal_the_reference() -> None:
    data = golden("vq_quantizer")
    quantizer = make(torch.from_numpy(data["cluster_embedding_0"]), online_clustering=True)
    for i in (0, 1):
        output = step(quantizer, torch.from_numpy(data[f"cluster_z_{i}"]))
        assert (output.tokens.numpy() == data[f"cluster_indices_{i}"][:, 0]).all()
        assert_close(output.quantized, data[f"cluster_zq_{i}"], atol=1e-6)
        assert_close(output.losses["quantizer_loss"], data[f"cluster_quantizer_loss_{i}"], atol=0, rtol=1e-5)
        assert_close(quantizer.embedding.weight, data[f"cluster_embedding_{i + 1}"], atol=1e-6)
        assert_close(quantizer.embed_prob, data[f"cluster_embed_prob_{i + 1}"], atol=1e-8)


def test_clustering_with_partial_mixing() -> None:
    data = {
        k.removeprefix("cluster_mid_"): v for k, v in golden("vq_quantizer").items() if "cluster_mid_" in k
    }
    quantizer = make(torch.from_numpy(data["embedding_before"]), online_clustering=True)
    quantizer.embed_prob.copy_(torch.from_numpy(data["embed_prob_before"]))
    latents = torch.from_numpy(data["z"])
    output = step(quantizer, latents)
    assert (output.tokens.numpy() == data["indices"][:, 0]).all()
    assert_close(quantizer.embedding.weight, data["embedding_after"], atol=1e-6)
    assert_close(quantizer.embed_prob, data["embed_prob_after"], atol=1e-8)


@pytest.mark.parametrize("use_l2_norm", [False, True])
def test_gradient_survives_the_clustering_update(use_l2_norm: bool) -> None:
    """The codebook changes in place before the backward pass; gradients must not notice."""
    codebook, latents = torch.randn(16, 4), torch.randn(2, 4, 1, 6)
    gradients = []
    for online_clustering in (False, True):
        quantizer = make(codebook, use_l2_norm=use_l2_norm, online_clustering=online_clustering)
        x = latents.clone().requires_grad_()
        output = step(quantizer, x)
        (output.losses["quantizer_loss"] + output.quantized.square().sum()).backward()
        gradients.append((x.grad, quantizer.embedding.weight.grad))
    for plain, clustered in zip(*gradients, strict=True):
        torch.testing.assert_close(clustered, plain, atol=0, rtol=0)


def test_clustering_revives_unused_codes() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codebook_size=64, code_dim=8, online_clustering=True)
    for _ in range(30):
        tokens = step(quantizer, torch.randn(8, 8, 1, 64)).tokens
    assert tokens.unique().numel() > 56  # without clustering the codes near 0 share all tokens among few


def test_autocast_does_not_reach_the_distances() -> None:
    quantizer = make(torch.randn(512, 16))
    latents = torch.randn(4, 16, 1, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(latents)
    assert output.quantized.dtype == torch.float32
    assert torch.equal(output.tokens, quantizer(latents).tokens)


def test_state_layout_with_and_without_clustering() -> None:
    names = {
        k.removeprefix("quantize."): v
        for k, v in manifest("tatitok_bl64_vq_training").items()
        if "quantize" in k
    }
    options = dict(codebook_size=8192, code_dim=64)
    assert list(state_layout(VectorQuantizer(**options, online_clustering=True)).items()) == list(
        names.items()
    )
    del names["embed_prob"]
    assert state_layout(VectorQuantizer(**options)) == names


def test_initial_codes_and_rejected_options() -> None:
    weight = VectorQuantizer(codebook_size=100, code_dim=50).embedding.weight.detach()
    assert weight.abs().max() <= 0.01 and weight.std().item() == pytest.approx(0.01 / 3**0.5, rel=0.05)
    with pytest.raises(ValueError, match="codebook_size=0"):
        VectorQuantizer(codebook_size=0, code_dim=4)


def _run_steps(batches: torch.Tensor, use_l2_norm: bool) -> dict[str, torch.Tensor]:
    """Three training steps on batches [steps, B, C, 1, N] and the codebook after them."""
    codebook = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    quantizer = make(codebook, use_l2_norm=use_l2_norm, online_clustering=True)
    tokens = torch.stack([step(quantizer, latents).tokens for latents in batches])
    return {"codes": quantizer.embedding.weight.detach(), "usage": quantizer.embed_prob, "tokens": tokens}


def _worker(rank: int, folder: str, use_l2_norm: bool) -> None:
    torch.set_num_threads(1)
    store = Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}/init", rank=rank, world_size=2)
    batches = torch.load(store / "batches.pt", weights_only=True)
    torch.save(_run_steps(batches[:, rank * 4 : rank * 4 + 4], use_l2_norm), store / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("use_l2_norm", [False, True])
def test_two_processes_update_the_codebook_like_one(use_l2_norm: bool) -> None:
    batches = torch.randn(3, 8, 6, 1, 5, generator=torch.Generator().manual_seed(2))
    expected = _run_steps(batches, use_l2_norm)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(batches, Path(folder) / "batches.pt")
        multiprocessing.spawn(_worker, (folder, use_l2_norm), nprocs=2)
        ranks = [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(torch.cat([rank["tokens"] for rank in ranks], dim=1), expected["tokens"])
    for rank in ranks:
        torch.testing.assert_close(rank["codes"], expected["codes"], atol=1e-6, rtol=0)
        torch.testing.assert_close(rank["usage"], expected["usage"], atol=1e-8, rtol=0)
    assert (expected["usage"] > 0).sum() > 8 and not torch.equal(ranks[0]["codes"], batches.new_zeros(24, 6))
