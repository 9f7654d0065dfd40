"""Lookup-free and binary spherical quantization: reference values and gradients, bit order, unit length, options."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling.quantizers import QUANTIZERS
from modeling.quantizers.bsq import BSQ
from modeling.quantizers.lfq import LFQ
from modeling.token_factors import TokenFactors
from tests.parity import assert_close, golden

CASES = ("small18", "mixed18", "unit18", "small14", "weighted10")


def case(tag: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{tag}_"): v for k, v in golden("magvit2_lfq").items() if k.startswith(f"{tag}_")}


@pytest.mark.parametrize("tag", CASES)
def test_values_and_gradients_equal_the_reference(tag: str) -> None:
    data = case(tag)
    sample_weight, batch_weight = data["weights"].tolist()
    x = torch.from_numpy(data["x"]).float().requires_grad_()
    quantizer = LFQ(
        bits=x.shape[1],
        commitment_cost=0.5,
        entropy_weight=2.0,
        sample_entropy_weight=sample_weight,
        batch_entropy_weight=batch_weight,
    )
    latents = x if x.ndim == 4 else x[:, :, None]
    output = quantizer(latents)
    losses = output.losses
    assert (output.quantized.detach().numpy().reshape(x.shape) == data["quantized"]).all()
    assert (output.tokens.flatten().numpy() == data["indices"].ravel()).all()
    assert torch.equal(quantizer.encode(latents), output.tokens)
    assert x.detach().flatten()[3] == 0 and output.quantized.flatten()[3] == -1

    for name, key in (("per_sample_entropy", "per_sample_entropy"), ("batch_entropy", "codebook_entropy")):
        assert_close(losses[name], data[key].reshape(()), atol=1e-5)
        assert not losses[name].requires_grad
    assert_close(losses["entropy_loss"] / 2, data["aux_loss"].reshape(()), atol=1e-5)
    assert_close(losses["commitment_loss"] / 0.5, data["commitment"].reshape(()), atol=1e-5)
    torch.testing.assert_close(losses["quantizer_loss"], losses["commitment_loss"] + losses["entropy_loss"])

    upstream = torch.from_numpy(data["ste_upstream"]).float().reshape(latents.shape)
    for value, scale, key in (
        (losses["entropy_loss"], 2.0, "grad_aux"),
        (losses["commitment_loss"], 0.5, "grad_commit"),
        ((output.quantized * upstream).sum(), 1.0, "ste_grad"),
    ):
        found = torch.autograd.grad(value, x, retain_graph=True)[0] / scale
        assert_close(found, data[key], atol=1e-4 * float(np.abs(data[key]).max()) + 5e-6)


@pytest.mark.parametrize("tag", ["factor6_12", "factor9_9"])
def test_sub_tokens_are_the_low_and_the_high_bits(tag: str) -> None:
    data = case(tag)
    low = int(tag.split("_")[0].removeprefix("factor"))
    factors, quantizer = TokenFactors((2**low, 2 ** (18 - low))), LFQ()
    x = torch.from_numpy(data["x"]).float()
    sub_tokens = factors.split(quantizer.encode(x if x.ndim == 4 else x[:, :, None]))
    assert (sub_tokens[..., 0].numpy() == data["pre"].reshape(sub_tokens.shape[:2])).all()
    assert (sub_tokens[..., 1].numpy() == data["post"].reshape(sub_tokens.shape[:2])).all()
    codes = quantizer.lookup(factors.join(sub_tokens))
    assert codes.dtype == torch.float32
    assert (codes.numpy().ravel() == data["codes"].ravel()).all()


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_tokens_are_row_major_and_lead_back_to_the_codes(name: str) -> None:
    quantizer, latents = QUANTIZERS[name](bits=6), torch.randn(2, 6, 3, 4)
    output = quantizer(latents)
    assert quantizer.codebook_size == 64 and quantizer.bits_per_token == 6.0 and not quantizer.state_dict()
    assert output.quantized.shape == latents.shape and output.tokens.shape == (2, 12)
    assert torch.equal(quantizer.lookup(output.tokens).view(latents.shape), output.quantized)
    assert output.tokens[1, 5] == sum(2**c for c in range(6) if latents[1, c, 1, 1] > 0)
    every = quantizer.lookup(torch.arange(64)[None])
    assert torch.equal(quantizer.encode(every), torch.arange(64)[None])


def test_spherical_codes_are_the_nearest_of_the_unit_sphere() -> None:
    torch.manual_seed(0)
    quantizer, latents = BSQ(bits=5), 9 * torch.randn(1, 5, 4, 4)
    codes = quantizer.lookup(torch.arange(32)[None])[0, :, 0].t()
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(32))
    vectors = F.normalize(latents[0].flatten(1).t(), dim=1)
    assert torch.equal(quantizer.encode(latents)[0], torch.cdist(vectors, codes).argmin(dim=1))
    torch.testing.assert_close(quantizer.normalize(latents).norm(dim=1), torch.ones(1, 4, 4))
    error = (quantizer(latents).quantized - quantizer.normalize(latents)).square().sum(dim=1)
    assert error.max() < 2 - 2 / math.sqrt(5)  # of the paper: the farthest vectors have one channel


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_losses_equal_distances_to_all_codes(name: str) -> None:
    torch.manual_seed(0)
    options = dict(
        commitment_cost=0.3, entropy_weight=0.7, sample_entropy_weight=0.9, batch_entropy_weight=1.4
    )
    quantizer = QUANTIZERS[name](bits=5, entropy_temperature=0.5, **options)
    latents = torch.randn(2, 5, 2, 3, requires_grad=True)
    losses = quantizer(latents).losses
    vectors = latents.permute(0, 2, 3, 1).reshape(-1, 5)
    vectors = F.normalize(vectors, dim=1) if name == "bsq" else vectors
    codes = quantizer.lookup(torch.arange(32)[None])[0, :, 0].t()
    distances = (vectors[:, None] - codes).square().sum(dim=2)
    shares = F.softmax(-distances / 0.5, dim=1)
    sample = -(shares * shares.log()).sum(dim=1).mean()
    batch = -(shares.mean(0) * (shares.mean(0) + 1e-5).log()).sum()
    torch.testing.assert_close(losses["per_sample_entropy"], sample.detach())
    torch.testing.assert_close(losses["batch_entropy"], batch.detach())
    naive = 0.3 * distances.min(dim=1).values.mean() / 5 + 0.7 * (0.9 * sample - 1.4 * batch)
    torch.testing.assert_close(losses["quantizer_loss"], naive)
    own = torch.autograd.grad(losses["quantizer_loss"], latents)[0]
    torch.testing.assert_close(own, torch.autograd.grad(naive, latents)[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_autocast_does_not_reach_the_losses(name: str) -> None:
    quantizer, latents = QUANTIZERS[name](bits=8), torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(latents)
    plain = quantizer(latents)
    assert output.quantized.dtype == torch.float32
    assert all(torch.equal(output.losses[key], value) for key, value in plain.losses.items())


def test_without_weight_there_is_no_entropy() -> None:
    losses = LFQ(bits=40, entropy_weight=0.0)(torch.randn(1, 40, 2, 2)).losses  # 2^40 codes fit nowhere
    assert losses.keys() == {"quantizer_loss", "commitment_loss"}


def test_rejected_options() -> None:
    for bits in (0, 63):
        with pytest.raises(ValueError, match=f"bits={bits} must be in 1 ... 62"):
            LFQ(bits=bits)
    with pytest.raises(ValueError, match="entropy_temperature=0.0 must be above 0"):
        BSQ(entropy_temperature=0.0)
