"""First stage of TiTok: its loss and a whole training step against the released ones, and what does not fit."""

import numpy as np
import pytest
import torch

from common.build import ConfigError
from data.source import CorruptSample, Source
from modeling.factory import build_tokenizer
from modeling.losses.reconstruction import proxy_cross_entropy
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


SIZES = {"patch_size": 16, "hidden_size": 16, "depth": 1, "num_heads": 2}
TEACHER = {"image_size": 32, "base_channels": 32, "num_blocks": 1, "codebook_size": 16, "code_dim": 4}


def make(validation, **teacher):
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
    setup = TokenizerSetup(
        tokenizer=tokenizer, validation=validation, optimizer=OptimizerSettings(), batch_size=2
    )
    return ProxyCodesTask(setup, teacher=MaskGITVQGAN(**TEACHER | teacher))


@pytest.mark.parametrize("options", [{"codebook_size": 32}, {"multipliers": (1, 1, 2, 2)}])
def test_a_teacher_that_does_not_fit_is_refused(options):
    with pytest.raises(ConfigError, match="predicts 4 codes of 16 .* the teacher gives"):
        make(Pictures(), **options)


class Pictures(Source):
    """Seven pictures, some of which cannot be read."""

    item_key, item_shape, class_names = "images", (3, 32, 32), ["a"]
    labels = np.zeros(7, dtype=np.int64)

    def __init__(self, *unreadable):
        self.unreadable, self.reads = unreadable, 0

    def load(self, index, rng):
        self.reads += 1
        if index in self.unreadable:
            raise CorruptSample(f"{index}.jpg", "cut short")
        return torch.from_numpy(np.random.default_rng(index).integers(0, 256, (3, 32, 32), np.uint8)), 0


@torch.no_grad()
def test_held_out_images_are_read_once_and_a_batch_without_a_readable_one_is_left_out(capsys):
    source = Pictures()
    task = make(source)
    model = task.modules["model"].eval()
    images = torch.stack([source.load(i, None)[0] for i in (0, 1, 4, 5, 6)]).float() / 255
    source.reads = 0
    whole = task.evaluate(model, torch.device("cpu"))
    assert source.reads == 7 and whole["images"] == 7
    task.validation = Pictures(2, 3)  # the second batch of two
    measured = task.evaluate(model, torch.device("cpu"))
    expected = proxy_cross_entropy(model.decode(model.encode(images)), task.teacher.encode(images))
    assert measured["proxy_cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)
    assert measured["images"] == 5 and measured.keys() == whole.keys()
    assert "evaluation skipped 2 examples: 2.jpg: cut short, 3.jpg: cut short" in capsys.readouterr().err
    task.validation = Pictures(*range(7))
    assert task.evaluate(model, torch.device("cpu"))["images"] == 0
