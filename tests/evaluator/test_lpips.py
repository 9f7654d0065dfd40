import pytest
import torch
from safetensors.torch import save_file

from evaluator.lpips import AlexNetLPIPS, load_lpips
from modeling.losses.lpips import LPIPS
from tests.parity import assert_layout, fill_module, golden, golden_json

ARRAYS, VALUES = golden("recon_metrics"), golden_json("recon_metrics")
KINDS = {"vgg": LPIPS, "alex": AlexNetLPIPS}


@pytest.fixture(scope="module", params=["vgg", "alex"])
def network(request: pytest.FixtureRequest) -> tuple[str, LPIPS]:
    module = fill_module(KINDS[request.param](), skip=("scaling_layer",)).eval()
    with torch.no_grad():
        for name, values in module.state_dict().items():
            if name.startswith("net.") and name.endswith("weight"):
                values.mul_(1.5)
            elif name.startswith("lin"):
                values.abs_()
    return request.param, module


def pair(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Original and clamped reconstruction in [0, 1], float64."""
    original = torch.from_numpy(ARRAYS[f"gt_{number}"]).permute(2, 0, 1)[None].double() / 255
    result = torch.from_numpy(ARRAYS[f"rec_{number}"])[None].double().clamp(-1, 1)
    return original, (result + 1) / 2


def test_layout_of_the_public_weights():
    with torch.device("meta"):
        assert_layout(AlexNetLPIPS(), "lpips_alex")


def test_values_of_the_public_network(network):
    name, module = network
    for number in range(3):
        images = [x.float() for x in pair(number)]
        value = module(*images).item()
        assert value == pytest.approx(VALUES[f"pair_{number}"][f"lpips_{name}_f32"], rel=1e-5)


def test_values_in_float64(network):
    name, module = network
    module.double()
    try:
        for number in range(1 if name == "vgg" else 3):
            value = module(*pair(number)).item()
            expected = VALUES[f"pair_{number}"]
            assert value == pytest.approx(expected[f"lpips_{name}_f64"], abs=1e-9)
            assert value == pytest.approx(sum(expected[f"lpips_{name}_layers_f64"]), abs=1e-9)
    finally:
        module.float()


def test_trunk_and_heads_come_from_their_own_files(tmp_path):
    module = fill_module(AlexNetLPIPS())
    state = module.state_dict()
    trunk = {
        f"features.{name.split('.', 2)[2]}": values
        for name, values in state.items()
        if name.startswith("net.")
    }
    heads = {name: values for name, values in state.items() if name.startswith("lin")}
    save_file(trunk | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "trunk.safetensors")
    save_file(heads, tmp_path / "heads.safetensors")
    loaded = load_lpips("alex", [str(tmp_path / "trunk.safetensors"), str(tmp_path / "heads.safetensors")])
    for name, values in loaded.state_dict().items():
        if not name.startswith("scaling_layer"):
            assert torch.equal(values, state[name]), name
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ValueError, match="does not fit AlexNetLPIPS: 10 entries"):
        load_lpips("alex", str(tmp_path / "heads.safetensors"))
    with pytest.raises(ValueError, match="'squeeze'"):
        load_lpips("squeeze", str(tmp_path / "heads.safetensors"))
