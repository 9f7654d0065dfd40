"""PatchGAN: released layout, reference logits in both modes, initial values."""

import pytest
import torch

from modeling.losses import DISCRIMINATORS
from modeling.losses.patchgan import PatchGAN
from tests.parity import assert_close, assert_layout, fill_module, golden


def test_state_dict_layout() -> None:
    assert_layout(PatchGAN(), "taming_patchgan_3")
    assert DISCRIMINATORS["patchgan"] is PatchGAN


@pytest.mark.parametrize(("num_layers", "last"), [(3, "main.9"), (2, "main.6")])
@torch.no_grad()
def test_logits_equal_the_reference(num_layers: int, last: str) -> None:
    data = golden(f"ut_patchgan_{num_layers}")
    model = fill_module(PatchGAN(num_layers=num_layers))
    images = (torch.from_numpy(data["x"]) + 1) / 2
    assert_close(model.eval()(images), data["logits_eval"], atol=1e-4)
    assert_close(model.train()(images), data["logits_train"], atol=1e-4)
    assert_close(model.state_dict()[f"{last}.running_mean"], data["running_mean_after"], atol=1e-4)


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = PatchGAN()
    assert model.main[5].weight.std().item() == pytest.approx(0.02, rel=0.02)
    norm = model.main[9]
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.2) and not norm.bias.any()


def test_many_layers_stop_widening_and_autocast_stays_out() -> None:
    model, images = PatchGAN(base_channels=4, num_layers=5).eval(), torch.rand(1, 3, 128, 128)
    assert max(p.shape[0] for p in model.parameters()) == 32
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.float32 and torch.equal(logits, model(images))


@pytest.mark.parametrize("options", [dict(base_channels=0), dict(num_layers=0)])
def test_impossible_sizes_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=0"):
        PatchGAN(**options)
