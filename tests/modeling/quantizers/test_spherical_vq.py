"""Spherical quantizer: reference values over three updates, the k-means start, processes, what files keep."""

import pytest
import torch
from torch.nn import functional as F

from modeling.quantizers.kmeans import kmeans
from modeling.quantizers.spherical_vq import SphericalVectorQuantizer
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.modeling.quantizers.steps import step
from tests.parity import assert_close, golden


def make(codebook_size=8, code_dim=4, **options):
    torch.manual_seed(0)
    return SphericalVectorQuantizer(codebook_size=codebook_size, code_dim=code_dim, **options)


def as_map(vectors):
    """[M, C] -> [1, C, 1, M]."""
    return vectors.t()[None, :, None]


def test_three_updates_equal_the_reference():
    data = golden("ut_vqkd_ema")
    quantizer = make(*data["embedding_init"].shape, kmeans_iterations=0)
    quantizer.embedding.weight.copy_(torch.from_numpy(data["embedding_init"]))
    for i in range(3):
        x = torch.from_numpy(data[f"x{i}"]).requires_grad_()
        output = step(quantizer, as_map(x))
        assert (output.tokens[0].numpy() == data[f"indices{i}"]).all()
        flat = output.quantized[0, :, 0].t()
        assert_close(flat, data[f"zq_before{i}"], rtol=1e-4, atol=1e-5)
        loss = output.losses["quantizer_loss"]
        assert_close(loss, data[f"commit_loss_before{i}"], rtol=1e-4, atol=1e-5)
        ((flat * torch.from_numpy(data[f"grad_out{i}"])).sum() + loss).backward()
        assert_close(x.grad, data[f"grad_x_before{i}"], rtol=1e-4, atol=1e-5)
        assert_close(quantizer.embedding.weight, data[f"embedding{i}"], rtol=1e-4, atol=1e-5)


def test_contract_of_a_quantizer():
    quantizer = make(kmeans_iterations=0).eval()
    latents = torch.randn(2, 4, 3, 5)
    output = quantizer(latents)
    assert output.tokens.shape == (2, 15) and torch.equal(quantizer.encode(latents), output.tokens)
    torch.testing.assert_close(quantizer.lookup(output.tokens).view(2, 4, 3, 5), output.quantized)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(latents).tokens, output.tokens)
    assert (quantizer.bits_per_token, quantizer.latent_channels, quantizer.codebook_size) == (3.0, 4, 8)


def test_a_start_forgets_the_codes_and_counts_as_one():
    quantizer, latents = make(), torch.randn(3, 4, 2, 4)
    assert not quantizer.codebook_started and make(kmeans_iterations=0).codebook_started
    quantizer.start_codebook(latents)
    assert quantizer.codebook_started
    started = quantizer.embedding.weight.clone()
    step(quantizer, torch.randn(3, 4, 2, 4))
    assert not torch.equal(quantizer.embedding.weight, started)
    quantizer.start_codebook(latents)
    assert torch.equal(quantizer.embedding.weight, started)


def test_first_batch_starts_the_codes_and_a_resumed_run_keeps_them():
    torch.manual_seed(1)
    latents = torch.randn(1, 4, 1, 64)
    quantizer = make(decay=0.0)  # with decay 0 the first update is one more iteration of k-means
    vectors = F.normalize(latents[0, :, 0].t(), dim=1)
    step(quantizer, latents)
    chosen = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:8]
    torch.testing.assert_close(
        quantizer.embedding.weight.data, kmeans(vectors, vectors[chosen], iterations=11, metric="cosine")
    )
    resumed = make()
    resumed.load_state_dict(quantizer.state_dict())
    step(resumed, latents)
    cosines = (resumed.embedding.weight * quantizer.embedding.weight).sum(dim=1)
    assert cosines.min() > 0.999  # moved by one update, not started anew


def test_a_small_first_batch_fills_the_first_codes():
    quantizer, latents = make(decay=0.99), torch.randn(1, 4, 1, 5)
    rest = quantizer.embedding.weight[5:].clone()
    step(quantizer, latents)
    vectors = F.normalize(latents[0, :, 0].t(), dim=1)
    torch.testing.assert_close(quantizer.embedding.weight[:5].data, vectors)
    torch.testing.assert_close(quantizer.embedding.weight[5:].data, rest.data)


def test_values_out_of_range_are_named():
    for options in ({"codebook_size": 0}, {"decay": 1.0}, {"kmeans_iterations": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
            make(**options)


@needs_fork
def test_two_processes_equal_one(tmp_path):
    torch.manual_seed(2)
    batches = torch.randn(3, 4, 4, 2, 8)  # three steps of four images
    alone = make()
    for batch in batches:
        step(alone, batch)

    def work(rank):
        quantizer = make()
        for batch in batches:
            step(quantizer, batch[2 * rank : 2 * rank + 2])
        torch.testing.assert_close(quantizer.embedding.weight.data, alone.embedding.weight.data)

    in_two_processes(work, tmp_path)
