"""One training forward and backward of whole released models: reconstructions, losses and every gradient norm."""

import numpy as np
import pytest
import torch

from modeling.losses.discriminators import NLayerDiscriminator
from tests.modeling.tokenizers.test_titok import released
from tests.parity import assert_close, fill_module, golden, golden_json
from tests.training.test_tokenizer_loss import BLUR, SINGLE, STAGE2, make_loss, networks  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("file", "model", "options", "step"),
    [
        ("train_step_stage2_s128", "titok_s128", STAGE2, 20_000),
        ("train_step_single_bl64_vae", "titok_bl64_vae_c16", SINGLE, 200_000),
    ],
)
def test_equals_the_released_step(networks, file, model, options, step):  # noqa: F811
    arrays, norms = golden(file), golden_json(f"{file}.grad_norms")
    tokenizer = fill_module(released(model)).train()
    image = torch.from_numpy(arrays["image_u8"])
    image = image.permute(2, 0, 1).float()[None] / 255
    noise = torch.from_numpy(arrays["eps"]) if "eps" in arrays else None
    output = tokenizer(image, noise)
    discriminator = fill_module(NLayerDiscriminator(), skip=BLUR)
    total, scalars = make_loss(networks, options).generator(
        image, output.reconstructions, output.losses, discriminator, step
    )
    total.backward()
    assert_close(output.reconstructions[:, :, ::4, ::4], arrays["recon_every4"], atol=5e-4)
    np.testing.assert_allclose(total.detach(), arrays["total"], rtol=1e-4)
    for name, value in scalars.items():
        np.testing.assert_allclose(value.detach(), arrays[f"dict.{name}"], rtol=1e-4, atol=1e-7, err_msg=name)
    parameters = dict(tokenizer.named_parameters())
    assert parameters.keys() == norms.keys()
    for name, expected in norms.items():
        gradient = parameters[name].grad
        assert (gradient is None) == (expected is None), name
        if expected is not None:
            # Key biases have no true gradient, only rounding noise.
            np.testing.assert_allclose(gradient.norm(), expected, rtol=1e-3, atol=1e-6, err_msg=name)
