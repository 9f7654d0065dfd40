"""Teachers: reference features, other sizes, projection, local weights, and what cannot be had."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from modeling.pretrained.teachers import build_teacher, load_teacher
from storage.weights import CheckpointError
from tests.parity import assert_close, fill_module, golden

timm = pytest.importorskip("timm")
TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """A weight file of vit_tiny as the Hub has it, with its head."""
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    save_file(fill_module(timm.create_model(TINY)).state_dict(), path)
    return path


@pytest.mark.parametrize(("golden_name", "name"), [("vit_tiny", TINY), ("convnext_atto", "convnext_atto")])
def test_features_equal_the_reference(golden_name, name):
    data = golden(f"ut_teacher_{golden_name}")
    teacher = build_teacher(name=name, grid=14)
    fill_module(teacher.network)
    images = torch.from_numpy(data["image_u8"]).permute(2, 0, 1)[None].float() / 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = teacher(images)
    assert features.shape == (1, teacher.width, 14, 14) and features.dtype == torch.float32
    tokens = features[0].flatten(1).t()
    atol = 2e-4 * float(data["features"].std())
    assert_close(tokens[::9], data["features"], atol=atol)
    assert_close(tokens.norm(dim=1), data["norms"], atol=10 * atol)


def test_local_weights_are_loaded_and_frozen(tiny_weights):
    teacher = load_teacher(TINY, weights=tiny_weights, input_size=32)
    expected = fill_module(build_teacher(name=TINY, input_size=32).network).state_dict()
    state = teacher.network.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected) and not state.keys() - expected
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().network.training
    assert (teacher.width, teacher.grid) == (192, 2)
    features = teacher(torch.rand(2, 3, 64, 64, requires_grad=True))
    assert features.shape == (2, 192, 2, 2) and not features.requires_grad


def test_projection_applies_the_head_to_every_place(tiny_weights):
    options = {"weights": tiny_weights, "input_size": 32}
    plain, projected = load_teacher(TINY, **options), load_teacher(TINY, project=True, **options)
    images = torch.rand(1, 3, 32, 32)
    assert projected.width == 1000
    head = projected.network.head
    expected = head(plain(images).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(projected(images), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="needs a vision transformer"):
        build_teacher(name="convnext_atto", project=True)


def test_networks_that_give_channels_last_and_those_that_average_are_normalised():
    torch.manual_seed(0)
    swin = build_teacher(name="swin_tiny_patch4_window7_224")
    assert swin(torch.rand(1, 3, 64, 64)).shape == (1, 768, 7, 7)
    averaging = build_teacher(name="deit3_small_patch16_224", input_size=32)
    averaging.network.norm, averaging.network.fc_norm = torch.nn.Identity(), torch.nn.LayerNorm(384)
    features = averaging(torch.rand(1, 3, 32, 32)).movedim(1, -1)
    assert features.mean(dim=-1).abs().max() < 1e-5


def test_what_does_not_fit_is_named(tiny_weights, tmp_path):
    with pytest.raises(
        ValueError, match="'vit_tinny_patch16_224' is no model of timm .*did you mean 'vit_tiny"
    ):
        build_teacher(name="vit_tinny_patch16_224")
    with pytest.raises(
        ValueError, match="no trained weights in timm; there are: vit_tiny_patch16_224.augreg"
    ):
        build_teacher(name=f"{TINY}.nonsense")
    with pytest.raises(ValueError, match="grid=0"):
        build_teacher(name=TINY, grid=0)
    with pytest.raises(CheckpointError, match="tiny.safetensors does not fit the teacher convnext_atto"):
        load_teacher("convnext_atto", weights=tiny_weights)
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        load_teacher(TINY, weights=tmp_path / "nowhere.pth")


def test_without_connection_it_is_said_what_to_put_where(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(ConnectionError, match="no route to host.*vit_tiny_patch16_224.*teacher.weights"):
        load_teacher(TINY)


def test_without_timm_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install -r requirements-teachers.txt"):
        build_teacher(name=TINY)
