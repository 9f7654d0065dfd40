import re

import pytest
import torch
from torch.nn import functional as F

from evaluator import space_network
from evaluator.metrics import METRICS
from evaluator.networks import NETWORKS, load_networks
from evaluator.space_network import SpaceExtractor, build_space_network, load_space, prepared
from evaluator.spaces import SPACES
from storage.weights import CheckpointError, write_weights
from tests.evaluator.spaces import fill_network, small_network, small_sizes
from tests.parity import golden

timm = pytest.importorskip("timm")
VISION = [name for name in SPACES if name != "inception"]


@pytest.fixture(scope="module")
def goldens():
    return golden("fdr_features")


@pytest.mark.parametrize("name", VISION)
def test_features_are_those_of_the_published_evaluators(name, goldens):
    network = small_network(name)
    for precision, tolerance in (("float64", 1e-6), ("float32", 2e-5)):
        extractor = SpaceExtractor(
            SPACES[name], network, weights_hash="filled", device="cpu", precision=precision
        )
        for side in (64, 256):
            images = torch.from_numpy(goldens[f"images_{side}"]).permute(0, 3, 1, 2)
            features = getattr(extractor(images), name)
            assert features.dtype == getattr(torch, precision)
            expected = torch.from_numpy(goldens[f"{name}_images_{side}"])
            assert (features.double() - expected).abs().max() < tolerance


def test_the_table_is_that_of_timm_and_of_the_paper(monkeypatch):
    for name in VISION:
        space, config = SPACES[name], timm.get_pretrained_cfg(SPACES[name].model)
        assert config.hf_hub_id == f"timm/{space.model}" and config.license.startswith(
            space.licence.lower()[:8]
        )
        assert space.colours == (config.mean, config.std)
        with torch.device("meta"):
            network = build_space_network(space)
        assert network.num_features == space.dim
        assert round(sum(p.numel() for p in network.parameters()) / 1e6) == space.parameters, name
        assert space.features in NETWORKS[name].features
    constants = [space.constant for space in SPACES.values()]
    assert constants == [1.68, 56.87, 14.19, 0.04, 0.60, 5.60]
    assert SPACES["mae"].published == "vit_large_patch16_224_mae_in256_t224_stats.npz"


def test_pixels_are_neither_rounded_nor_clamped():
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[..., 32:] = 255
    space = SPACES["siglip"]
    pixels = prepared(images, space)[0, 0, 100] * 0.5 + 0.5
    assert pixels.max() > 1.01 and pixels.min() < -0.01  # a cubic overshoots
    expected = F.interpolate(images.float() / 255, (224, 224), mode="bicubic", antialias=True)[0, 0, 100]
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
    same = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)  # its own size: not resized
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in SPACES["clip"].colours)
    assert torch.equal(prepared(same, SPACES["clip"]), (same / 255 - mean) / std)


def test_half_precision_runs_under_autocast_and_says_so(goldens):
    network = small_network("mae")
    extractor = SpaceExtractor(
        SPACES["mae"], network, weights_hash="filled", device="cpu", precision="bfloat16"
    )
    images = torch.from_numpy(goldens["images_64"]).permute(0, 3, 1, 2)
    features, expected = extractor(images).mae, torch.from_numpy(goldens["mae_images_64"]).float()
    assert extractor.approximate and features.dtype == torch.float32
    error = (features - expected).norm() / expected.norm()
    assert 1e-4 < error < 2e-2
    assert network.blocks[0].attn.qkv.weight.dtype == torch.float32


def test_weights_are_found_and_checked(tmp_path, monkeypatch):
    space, sizes = SPACES["clip"], small_sizes("clip")
    state = fill_network(build_space_network(space, **sizes)).state_dict()
    path = tmp_path / "timm" / space.model / "model.safetensors"
    write_weights(path, {**state, "head.weight": torch.zeros(8, 48)})  # the projection is not needed
    named = load_space(space, path, **sizes)
    monkeypatch.setenv("TITOK_WEIGHTS", str(tmp_path))
    found = load_space(space, **sizes)
    assert found.weights_hash == named.weights_hash and found.dims == {"clip": 48}
    assert found.recipe == {
        "model": space.model,
        "side": 256,
        "output": "class_token",
        "constant": 5.6,
    }
    write_weights(tmp_path / "part.safetensors", {"cls_token": torch.zeros(1, 1, 48)})
    with pytest.raises(CheckpointError, match="part.safetensors lacks the entry"):
        load_space(space, tmp_path / "part.safetensors", **sizes)
    with pytest.raises(ValueError, match="precision is 'int8'"):
        load_space(space, path, precision="int8", **sizes)


def test_all_missing_weights_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TITOK_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("evaluator.space_weights.hub_file", _offline)
    monkeypatch.setattr(space_network, "build_network", lambda *_, **__: pytest.fail("nothing is built"))
    metrics = [name for name, metric in METRICS.items() if metric.features in ("mae", "clip", "dinov2_dgm")]
    with pytest.raises(FileNotFoundError) as caught:
        load_networks(metrics, {"clip": str(tmp_path / "absent.safetensors")}, device="cpu")
    message = str(caught.value)
    assert "absent.safetensors does not exist" in message
    for part in ("mae", "huggingface.co/timm/vit_large_patch16_224.mae/resolve/main/model.safetensors"):
        assert part in message
    assert re.search(r"303 million parameters, about 1.2 GB, licence CC-BY-NC-4.0", message)
    assert "space_weights.mae or save it as timm/vit_large_patch16_224.mae/model.safetensors" in message


def _offline(*_):
    raise ConnectionError("the Hub cannot be reached")
