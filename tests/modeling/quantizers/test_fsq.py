"""Finite scalar quantization: reference codes, gradients and look-ups; the grid is exactly the codebook."""

import math

import pytest
import torch

from modeling.quantizers import FSQ, QUANTIZERS
from tests.parity import assert_close, golden, golden_json

CASES = ["ut_fsq_8x5x5x5", "ut_fsq_8x8x8x5x5x5"]


def rows(x: torch.Tensor) -> torch.Tensor:
    """[M, C] as latents [1, C, 1, M]."""
    return x.t()[None, :, None]


def back(x: torch.Tensor) -> torch.Tensor:
    return x[0, :, 0].t()


@pytest.mark.parametrize("case", CASES)
def test_codes_and_gradients_equal_the_reference(case: str) -> None:
    data, levels = golden(case), golden_json(case)["levels"]
    quantizer = FSQ(levels=levels)
    latents = rows(torch.from_numpy(data["x"])).requires_grad_()
    output = quantizer(latents)
    assert (output.tokens[0].numpy() == data["indices"]).all() and output.losses == {}
    assert_close(back(output.quantized), data["z"], atol=1e-6)
    (back(output.quantized) * torch.from_numpy(data["grad_weight"])).sum().backward()
    assert_close(back(latents.grad), data["grad_x"], atol=1e-6, rtol=1e-4)
    probes = torch.from_numpy(data["probe_indices"]).long()[None]
    assert_close(back(quantizer.lookup(probes)), data["probe_codes"], atol=1e-6)

    beyond = FSQ(levels=levels, eps=-1e-3)(latents)
    assert (beyond.tokens[0].numpy() == data["indices_plus_eps"]).all()
    assert_close(back(beyond.quantized), data["z_plus_eps"], atol=1e-6)
    assert (beyond.tokens != output.tokens).any()  # otherwise the two variants were not told apart


@pytest.mark.parametrize("levels", [[3, 4, 5], [8, 6, 5]])
def test_every_code_is_its_own_token(levels: list[int]) -> None:
    quantizer = FSQ(levels=levels)
    assert quantizer.codebook_size == math.prod(levels) and quantizer.bits_per_token == math.log2(
        math.prod(levels)
    )
    assert quantizer.latent_channels == quantizer.code_dim == len(levels) and not quantizer.state_dict()
    tokens = torch.arange(quantizer.codebook_size).view(2, -1)
    codes = quantizer.lookup(tokens)
    assert codes.flatten(2).transpose(1, 2).reshape(-1, len(levels)).unique(dim=0).shape[0] == tokens.numel()
    for channel, level in enumerate(levels):
        values = codes[:, channel].unique()
        assert len(values) == level and values[0] == -1 and values[-1] == (1 if level % 2 else 1 - 2 / level)


def test_a_cost_pulls_latents_back_from_the_flat_ends() -> None:
    latents = torch.tensor([[0.0, 1.4, -3.5], [-1.5, 2.5, 0.1]])[..., None, None].requires_grad_()
    output = FSQ(levels=[5, 4, 3], saturation_cost=0.3)(latents)
    # Two of six lie beyond, by 2 and by 1.
    assert output.losses["quantizer_loss"].item() == pytest.approx(0.3 * (4 + 1) / 6)
    output.losses["quantizer_loss"].backward()
    assert (latents.grad.flatten() > 0).tolist() == [False, False, False, False, True, False]
    assert (latents.grad.flatten() < 0).tolist() == [False, False, True, False, False, False]
    plain = FSQ(levels=[5, 4, 3])(latents)
    assert plain.losses == {} and torch.equal(plain.quantized, output.quantized)
    with pytest.raises(ValueError, match="saturation_cost=-1 must not be negative"):
        FSQ(levels=[5], saturation_cost=-1)


def test_two_dimensional_latents_and_encode() -> None:
    quantizer, latents = FSQ(levels=[5, 4, 3]), 3 * torch.randn(2, 3, 4, 5)
    output = quantizer(latents)
    assert output.tokens.shape == (2, 20) and output.quantized.shape == latents.shape
    assert torch.equal(quantizer.encode(latents), output.tokens)
    torch.testing.assert_close(quantizer.lookup(output.tokens).view(2, 3, 4, 5), output.quantized)
    exact = quantizer.normalize(latents)
    spacing = 1 / torch.tensor([2.0, 2.0, 1.0]).view(1, 3, 1, 1)
    assert ((exact - output.quantized).abs() <= spacing / 2 + 1e-6).all()
    assert not torch.allclose(exact, output.quantized, atol=0.05)


def test_autocast_does_not_reach_it() -> None:
    quantizer, latents = FSQ(levels=[8, 8, 8, 5, 5, 5]), torch.randn(2, 6, 1, 500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(latents)
    assert output.quantized.dtype == torch.float32 and torch.equal(output.tokens, quantizer(latents).tokens)


def test_rejected_options() -> None:
    assert QUANTIZERS["fsq"] is FSQ
    for levels in ([], [8, 2]):
        with pytest.raises(ValueError, match="levels="):
            FSQ(levels=levels)
    with pytest.raises(ValueError, match="eps=0.5"):
        FSQ(levels=[5], eps=0.5)
