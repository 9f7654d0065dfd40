"""First stage of TiTok: its loss and a whole training step against the released ones, and what does not fit."""

import numpy as np
import pytest
import torch

from common.build import ConfigError
from modeling.factory import build_tokenizer
from modeling.tokenizers.maskgit_vqgan import MaskGITVQGAN
from tests.modeling.tokenizers.test_titok import released
from tests.parity import assert_close, fill_module, golden, golden_json, image_pair
from training.settings import OptimizerSettings
from training.tasks.proxy_codes import ProxyCodesTask, proxy_loss
from training.tasks.tokenizer import TokenizerSetup


def test_equals_the_released_loss():
    arrays = golden("loss_stage1")
    logits = (2 * torch.from_numpy(arrays["logits_half_f16"]).float()).requires_grad_()
    losses = {
        "quantizer_loss": torch.tensor(0.7, requires_grad=True),
        "commitment_loss": torch.tensor(0.2),
        "codebook_loss": torch.tensor(0.5),
    }
    total, scalars = proxy_loss(logits, torch.from_numpy(arrays["codes"]).long(), losses, 1.0)
    total.backward()
    np.testing.assert_allclose(total.detach(), arrays["total"], rtol=1e-4)
    stored = {k.removeprefix("dict."): v for k, v in arrays.items() if k.startswith("dict.")}
    assert stored.keys() <= scalars.keys() and len(stored) == 5
    for name, value in stored.items():
        np.testing.assert_allclose(scalars[name].detach(), value, rtol=1e-4, err_msg=name)
    assert_close(logits.grad[:, ::8], arrays["grad_logits_every8"], rtol=1e-4, atol=1e-7)
    assert_close(losses["quantizer_loss"].grad, arrays["grad_quantizer_loss"], atol=1e-7)


@pytest.mark.slow
def test_equals_the_released_step():
    arrays, norms = golden("train_step_stage1_b64"), golden_json("train_step_stage1_b64.grad_norms")
    tokenizer = fill_module(released("titok_b64_stage1")).train()
    output = tokenizer(image_pair(arrays))
    total, scalars = proxy_loss(
        output.reconstructions, torch.from_numpy(arrays["codes"]).long(), output.losses, 1.0
    )
    total.backward()
    assert_close(output.reconstructions[:, ::64], arrays["logits_every64"], atol=1e-4, rtol=1e-4)
    assert (output.tokens.numpy().ravel() == arrays["indices"].ravel()).mean() >= 0.99
    np.testing.assert_allclose(total.detach(), arrays["total"], rtol=1e-4)
    for name, value in scalars.items():
        np.testing.assert_allclose(value.detach(), arrays[f"dict.{name}"], rtol=1e-4, atol=1e-7, err_msg=name)
    parameters = dict(tokenizer.named_parameters())
    assert parameters.keys() == norms.keys() and len(norms) == 315
    for name, expected in norms.items():
        gradient = parameters[name].grad.norm()
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("options", [{"codebook_size": 32}, {"multipliers": (1, 1, 2, 2)}])
def test_a_teacher_that_does_not_fit_is_refused(options):
    tokenizer = build_tokenizer(
        {
            "name": "titok",
            "layout": "proxy",
            "image_size": 32,
            "num_latent_tokens": 4,
            **{f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in SIZES.items()},
            "proxy_codebook_size": 16,
            "quantizer": {"name": "vq", "codebook_size": 8, "code_dim": 4},
        }
    )
    shape = {"base_channels": 32, "num_blocks": 1, "codebook_size": 16, "code_dim": 4} | options
    with pytest.raises(ConfigError, match="predicts 4 codes of 16 .* the teacher gives"):
        ProxyCodesTask(
            TokenizerSetup(
                tokenizer=tokenizer, validation=Nothing(), optimizer=OptimizerSettings(), batch_size=2
            ),
            teacher=MaskGITVQGAN(image_size=32, **shape),
        )


SIZES = {"patch_size": 16, "hidden_size": 16, "depth": 1, "num_heads": 2}


class Nothing:
    """Stands for held-out images that nobody looks at."""

    class_names = ("a",)
