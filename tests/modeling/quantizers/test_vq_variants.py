"""Options of the vector quantizer: clustering by direction and by distance, LlamaGen's training, entropy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling.quantizers import VectorQuantizer
from modeling.quantizers.entropy import entropy_loss
from tests.modeling.quantizers.steps import step
from tests.parity import assert_close, fill_values, golden


def make(codebook: torch.Tensor, **options) -> VectorQuantizer:
    quantizer = VectorQuantizer(codebook_size=len(codebook), code_dim=codebook.shape[1], **options)
    quantizer.embedding.weight.data.copy_(codebook)
    return quantizer


@pytest.mark.parametrize(
    ("distance", "case"), [("cosine", c) for c in range(3)] + [("l2", c) for c in range(2)]
)
def test_one_clustering_step_equals_the_reference(distance: str, case: int) -> None:
    arrays = golden(f"ut_cvq_update_{distance}")
    data = {k.removesuffix(str(case)): v for k, v in arrays.items() if k.endswith(str(case))}
    quantizer = make(torch.from_numpy(data["embedding_before"]), distance=distance, online_clustering=True)
    quantizer.embed_prob.copy_(torch.from_numpy(data["probability_before"]))
    output = step(quantizer, torch.from_numpy(data["x"]).t()[None, :, None])
    assert (output.tokens[0].numpy() == data["indices"]).all()
    assert_close(output.losses["quantizer_loss"], data["loss_before"], atol=1e-5, rtol=1e-4)
    assert_close(quantizer.embed_prob, data["probability_after"], atol=1e-5, rtol=1e-4)
    assert_close(quantizer.embedding.weight, data["embedding_after"], atol=1e-5, rtol=1e-4)


def test_directions_choose_but_lengths_are_kept() -> None:
    quantizer = make(torch.tensor([[10.0, 0.0], [0.0, 0.1]]), distance="cosine")
    output = quantizer(torch.tensor([0.2, 0.1]).view(1, 2, 1, 1))
    assert output.tokens.item() == 0  # by distance it would be the other
    assert output.quantized.flatten().tolist() == pytest.approx([10.0, 0.0], abs=1e-5)


def test_llamagen_training_equals_the_reference() -> None:
    data = golden("ut_llamagen_quantizer_train")
    quantizer = make(fill_values("quantize.embedding.weight", torch.empty(16384, 8)), use_l2_norm=True)
    latents = torch.from_numpy(data["z"]).requires_grad_()
    output = quantizer(latents)
    assert (output.tokens.flatten().numpy() == data["indices"]).all()
    tolerances = dict(atol=1e-6, rtol=1e-3)
    assert_close(output.quantized, data["quantized"], **tolerances)
    assert_close(output.losses["codebook_loss"], data["vq_loss"], **tolerances)
    assert_close(output.losses["commitment_loss"], data["commit_loss"], **tolerances)
    (
        output.losses["quantizer_loss"] + (output.quantized * torch.from_numpy(data["grad_out"])).sum()
    ).backward()
    assert_close(latents.grad, data["grad_z"], **tolerances)
    used = torch.from_numpy(data["used_rows"]).long()
    assert_close(quantizer.embedding.weight.grad[used], data["grad_used_rows"], **tolerances)
    draws = np.random.Generator(np.random.PCG64(1042)).standard_normal((12, 20))
    assert_close(entropy_loss(torch.from_numpy(draws).float(), 0.01), data["affinity_entropy"], **tolerances)


def test_entropy_is_low_for_clear_and_even_choices() -> None:
    clear = 10 * torch.eye(4)
    assert entropy_loss(clear, 0.1).item() == pytest.approx(-np.log(4), abs=1e-3)
    assert entropy_loss(clear[:1].expand(4, 4), 0.1).item() == pytest.approx(0.0, abs=1e-3)
    assert entropy_loss(torch.zeros(4, 4), 0.1).item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("clustering", [False, True])
def test_entropy_joins_the_quantizer_loss(clustering: bool) -> None:
    torch.manual_seed(0)
    codebook, latents = torch.randn(12, 4), torch.randn(2, 4, 1, 6, requires_grad=True)
    options = dict(entropy_weight=0.3, entropy_temperature=0.5, online_clustering=clustering)
    quantizer = make(codebook, **options)
    losses = step(quantizer, latents).losses
    vectors = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    shares = F.softmax(-torch.cdist(vectors, codebook).square() / 0.5, dim=-1)
    spread = (shares.mean(0) * (shares.mean(0) + 1e-5).log()).sum()
    naive = 0.3 * (spread - (shares * shares.log()).sum(-1).mean())
    torch.testing.assert_close(losses["entropy_loss"], naive, atol=1e-5, rtol=1e-4)
    parts = losses["commitment_loss"] + losses["codebook_loss"] + losses["entropy_loss"]
    torch.testing.assert_close(losses["quantizer_loss"], parts)
    own = torch.autograd.grad(losses["entropy_loss"], latents, retain_graph=True)[0]
    torch.testing.assert_close(own, torch.autograd.grad(naive, latents)[0], atol=1e-5, rtol=1e-3)
    losses["quantizer_loss"].backward()
    assert quantizer.embedding.weight.grad.abs().sum() > 0


def test_rejected_options() -> None:
    with pytest.raises(ValueError, match="distance='dot'"):
        make(torch.randn(4, 2), distance="dot")
    with pytest.raises(ValueError, match="entropy_temperature=0"):
        make(torch.randn(4, 2), entropy_temperature=0.0)
