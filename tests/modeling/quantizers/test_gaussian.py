"""Gaussian bottleneck: reference values, gradient, and when it samples."""

import pytest
import torch

from modeling.quantizers import GaussianQuantizer
from modeling.quantizers.posterior import DiagonalGaussian
from tests.parity import assert_close, golden


def test_posterior_equals_the_reference() -> None:
    data = golden("diag_gaussian")
    parameters = torch.from_numpy(data["parameters"]).requires_grad_()
    posterior = DiagonalGaussian(parameters)
    for name in ("mean", "logvar", "std", "var"):
        assert_close(getattr(posterior, name), data[name], atol=1e-7, rtol=1e-6)
    assert_close(posterior.mode(), data["mode"], atol=0)
    assert_close(posterior.kl(), data["kl"], atol=1e-5, rtol=1e-6)
    assert_close(
        posterior.sample(torch.from_numpy(data["eps"])), data["sample_with_eps"], atol=1e-6, rtol=1e-6
    )
    (posterior.kl()[1].sum() / 2).backward()
    assert_close(parameters.grad, data["grad_parameters_of_half_kl1"], atol=1e-7, rtol=1e-5)


def test_samples_in_training_or_with_noise_and_takes_the_mode_otherwise() -> None:
    quantizer = GaussianQuantizer(code_dim=4)
    latents, noise = torch.randn(2, 8, 1, 3), torch.randn(2, 4, 1, 3)
    mean, logvar = latents.chunk(2, dim=1)
    assert torch.equal(quantizer.eval()(latents).quantized, mean)
    torch.testing.assert_close(quantizer(latents, noise).quantized, mean + (0.5 * logvar).exp() * noise)
    assert not torch.equal(quantizer.train()(latents).quantized, mean)
    assert torch.equal(quantizer.encode(latents), mean)


def test_losses_and_attributes() -> None:
    quantizer = GaussianQuantizer(code_dim=4)
    latents = torch.randn(2, 8, 1, 3)
    output = quantizer(latents)
    assert_close(output.losses["kl_loss"], output.posterior.kl().sum().detach().numpy() / 2, atol=1e-6)
    assert output.tokens is None and quantizer.latent_channels == 8 and quantizer.codebook_size is None
    assert quantizer.bits_per_token is None and not quantizer.state_dict()
    with pytest.raises(ValueError, match="no codebook"):
        quantizer.lookup(torch.zeros(1, 2, dtype=torch.int64))
