"""Perceptual loss: layouts, reference values and gradients, weight files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling.losses.convnext import ConvNeXtDistance, ConvNeXtSmall
from modeling.losses.lpips import LPIPS, torchvision_vgg16_name
from modeling.losses.perceptual import PerceptualLoss, load_frozen, load_perceptual_loss, lpips_entry
from tests.parity import assert_close, assert_layout, fill_module, filled, golden


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return fill_module(LPIPS(), skip=("scaling_layer",)).eval()


@pytest.fixture(scope="module")
def convnext() -> ConvNeXtDistance:
    distance = ConvNeXtDistance().eval()
    fill_module(distance.net)
    return distance


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and reconstructions that leave [0, 1], [2, 3, 128, 128]."""
    data = golden("loss_inputs")
    images, other = (
        torch.from_numpy(data[k]).permute(0, 3, 1, 2).float() / 255 for k in ("real_u8", "rec_u8")
    )
    return images, other * 1.2 - 0.1


def test_state_dict_layouts() -> None:
    with torch.device("meta"):
        assert_layout(LPIPS(), "lpips")
        assert_layout(ConvNeXtSmall(), "convnext_small")


@pytest.mark.parametrize(
    ("tag", "lpips_weight", "convnext_weight"),
    [("convnext", 0.0, 0.1), ("lpips", 2.0, 0.0), ("both_1_01", 1.0, 0.1), ("both_2_3", 2.0, 3.0)],
)
def test_values_and_gradients_equal_the_reference(
    tag: str,
    lpips_weight: float,
    convnext_weight: float,
    lpips: LPIPS,
    convnext: ConvNeXtDistance,
    pair: tuple,
) -> None:
    data = golden("perceptual_loss")
    loss = PerceptualLoss(
        lpips=lpips if lpips_weight else None,
        convnext=convnext if convnext_weight else None,
        lpips_weight=lpips_weight,
        convnext_weight=convnext_weight,
    )
    images, reconstructions = pair[0].clone().requires_grad_(), pair[1].clone().requires_grad_()
    value = loss.train()(images, reconstructions)
    value.backward()
    assert_close(value, data[f"{tag}_value"].mean(), atol=1e-7, rtol=1e-4)
    assert_close(reconstructions.grad[:, :, ::4, ::4], data[f"{tag}_grad_rec_every4"], atol=1e-7, rtol=1e-4)
    assert images.grad is None and not any(p.requires_grad for p in loss.parameters())
    assert not any(module.training for module in loss.modules())


@torch.no_grad()
def test_lpips_per_image_equals_the_reference(lpips: LPIPS, pair: tuple) -> None:
    assert_close(lpips(*pair), golden("perceptual_loss")["lpips_value"], atol=1e-7, rtol=1e-4)
    assert not lpips(pair[0], pair[0]).any()


def test_black_features_have_a_finite_gradient() -> None:
    model = LPIPS().requires_grad_(False)
    for parameter in model.net.parameters():
        parameter.zero_()  # all feature maps 0: the norm's derivative is at its singular point
    reconstructions = torch.rand(1, 3, 16, 16, requires_grad=True)
    model(torch.rand(1, 3, 16, 16), reconstructions).sum().backward()
    assert reconstructions.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(lpips_weight=0, convnext_weight=0), "not both 0"),
        (dict(lpips_weight=-1, convnext_weight=2), "lpips_weight=-1"),
        (dict(lpips_weight=1, convnext_weight=0), "lpips_path"),
        (dict(lpips_weight=0, convnext_weight=0.1, lpips_path="a"), "convnext_path"),
    ],
)
def test_unusable_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_perceptual_loss(**options)
    with pytest.raises(ValueError):
        PerceptualLoss(lpips=None, convnext=None, lpips_weight=1, convnext_weight=0)


def test_lpips_loads_from_one_file_or_from_vgg_and_heads(tmp_path: Path, lpips: LPIPS) -> None:
    state = lpips.state_dict()
    save_file(state, tmp_path / "all.safetensors")
    flat = {f"features.{k.split('.', 2)[2]}": v for k, v in state.items() if k.startswith("net.")}
    torch.save({**flat, "classifier.0.weight": torch.zeros(2)}, tmp_path / "vgg16.pth")
    torch.save({k: v for k, v in state.items() if k.startswith("lin")}, tmp_path / "heads.pth")
    whole = load_perceptual_loss(
        lpips_weight=1, convnext_weight=0, lpips_path=str(tmp_path / "all.safetensors")
    ).lpips
    parts = filled(LPIPS)
    load_frozen(parts, [str(tmp_path / "vgg16.pth"), str(tmp_path / "heads.pth")], lpips_entry)
    for loaded in (whole, parts):
        for name, tensor in loaded.named_parameters():
            assert torch.equal(tensor, state[name]), name
    torch.testing.assert_close(whole.scaling_layer.shift, LPIPS().scaling_layer.shift)
    with pytest.raises(ValueError, match="does not fit LPIPS: 5 entries.*lin0.model.1.weight"):
        load_frozen(LPIPS(), str(tmp_path / "vgg16.pth"), lpips_entry)


def test_every_vgg_entry_finds_its_place() -> None:
    names = {k for k in LPIPS().state_dict() if k.startswith("net.")}
    assert {torchvision_vgg16_name(f"features.{k.split('.', 2)[2]}") for k in names} == names
    assert torchvision_vgg16_name("classifier.6.bias") is None


def test_bad_files_are_named(tmp_path: Path) -> None:
    missing, cut, junk = tmp_path / "missing.pth", tmp_path / "cut.safetensors", tmp_path / "junk.pth"
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        load_perceptual_loss(lpips_weight=1, convnext_weight=0, lpips_path=str(missing))
    save_file({"x": torch.zeros(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:200])
    junk.write_bytes(b"not a checkpoint")
    for path in (cut, junk):
        with pytest.raises(ValueError, match=path.name):
            load_perceptual_loss(lpips_weight=1, convnext_weight=0, lpips_path=str(path))
    torch.save({"step": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a state dict of tensors"):
        load_perceptual_loss(lpips_weight=1, convnext_weight=0, lpips_path=str(tmp_path / "other.pth"))
