"""The feature network against arrays of the original, and its fast form against itself."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluator import inception_fast
from evaluator.float_rfid import load_float_inception
from evaluator.inception import load_inception
from evaluator.inception_fast import FastInception
from evaluator.inception_network import InceptionV3
from tests.parity import assert_close, assert_layout, filled, golden


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    """Filled weights, scaled so that features differ between images as much as with the real ones."""
    net = filled(InceptionV3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("conv.weight"):
                parameter.mul_(1.5)
            elif name == "fc.weight":
                parameter.mul_(6.0)
    return net


@pytest.fixture(scope="module")
def double_network(network) -> InceptionV3:
    net = InceptionV3().double()
    net.load_state_dict(network.state_dict())
    return net


@pytest.fixture(scope="module")
def weight_file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return golden("inception_features")


def image(arrays: dict[str, np.ndarray], index: int) -> torch.Tensor:
    return torch.from_numpy(arrays[f"image_{index}"]).permute(2, 0, 1)[None]


def relative(actual: torch.Tensor, expected: torch.Tensor | np.ndarray) -> float:
    expected = torch.as_tensor(expected).double()
    return float((actual.double() - expected).norm() / expected.norm())


def test_names_and_shapes_are_those_of_the_published_file():
    with torch.device("meta"):
        assert_layout(InceptionV3(), "inception_fid")


def test_every_stage_and_the_features_in_float64(double_network, arrays):
    stages = {}
    for name, x in double_network.stages(image(arrays, 2)):
        stages[name] = x if x.ndim == 4 else x[:, :, None, None]
    assert list(stages) == arrays["stage_names"].tolist()
    for i, (name, x) in enumerate(stages.items()):
        assert x.shape[1:] == (arrays["stage_channels"][i], *[arrays["stage_side"][i]] * 2), name
        statistics = [x.mean(), x.std(correction=0), *x[0, :8].mean((1, 2))]
        expected = [arrays["stage_mean"][i], arrays["stage_std"][i], *arrays["stage_channel_mean_first8"][i]]
        np.testing.assert_allclose(
            np.array([float(s) for s in statistics]), expected, rtol=1e-5, err_msg=name
        )
    assert_close(stages["AvgPool"][..., 0, 0], arrays["pool"][2:3], atol=1e-12)
    for tap, name in ((64, "MaxPool_1"), (192, "MaxPool_2"), (768, "Mixed_6e")):
        assert_close(stages[name].mean((2, 3)), arrays[f"pool_{tap}"][2:3], atol=1e-6)


@pytest.mark.parametrize("index", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 6))])
def test_features_in_float64(double_network, arrays, index):
    features = double_network(image(arrays, index))
    assert_close(features.pool, arrays["pool"][index : index + 1], atol=1e-12)
    assert_close(features.logits, arrays["logits_unbiased"][index : index + 1], atol=1e-5)
    assert_close(features.spatial, arrays["spatial"][index : index + 1], atol=1e-6)
    biased = features.logits + double_network.fc.bias
    assert_close(biased, arrays["logits"][index : index + 1], atol=1e-5)


@pytest.mark.slow
def test_resize_in_float64_as_the_tokenizer_evaluator_does(double_network, arrays):
    net = InceptionV3(resize_dtype=torch.float64).double()
    net.load_state_dict(double_network.state_dict())
    for row, index in enumerate((2, 3)):
        assert_close(net(image(arrays, index)).pool, arrays["pool_resize_f64"][row : row + 1], atol=1e-12)


@pytest.mark.parametrize("index", range(6))
def test_fast_features_of_every_size_of_image(network, arrays, index):
    features = FastInception(network)(image(arrays, index))
    assert all(part.dtype == torch.float32 for part in features)
    for part, name, atol in zip(
        features, ("pool", "logits_unbiased", "spatial"), (3e-5, 1e-4, 3e-5), strict=True
    ):
        expected = arrays[name][index : index + 1]
        assert_close(part, expected, atol=atol)
        assert relative(part, expected) < 1.5e-6, name


def test_fast_is_plain_without_packed_weights_and_under_autocast(network, arrays, monkeypatch):
    images = image(arrays, 4)
    plain = network(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(FastInception(network)(images).pool, plain.pool) < 2e-6
    monkeypatch.setattr(inception_fast, "_can_pack", lambda *arguments: False)
    for fast, slow in zip(FastInception(network)(images), plain, strict=True):
        assert relative(fast, slow) < 2e-6


def test_batches_make_no_difference(network):
    images = torch.randint(
        0, 256, (5, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    whole = FastInception(network, batch=8, stem_batch=3)(images)
    parts = FastInception(network, batch=2)(images)
    for one, two in zip(whole, parts, strict=True):
        assert one.shape[0] == 5 and relative(one, two) < 2e-6
        assert relative(one[0], one[1]) > 1e-3


def test_no_images_are_no_features(network):
    empty = torch.zeros(0, 3, 20, 20, dtype=torch.uint8)
    for run in (network, FastInception(network)):
        assert [list(part.shape) for part in run(empty)] == [[0, 2048], [0, 1008], [0, 2023]]


def test_loaded_extractor_knows_what_it_is(weight_file, arrays, capsys):
    images = image(arrays, 1)
    extractor = load_inception(weight_file)
    assert "not the published file" in capsys.readouterr().err
    assert len(extractor.weights_hash) == 64 and not extractor.official and not extractor.approximate
    features = extractor(images)
    assert extractor.dims == {name: part.shape[1] for name, part in features._asdict().items()}
    assert relative(features.pool, arrays["pool"][1:2]) < 1.5e-6


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_an_imitated_precision_is_named_before_the_first_image(weight_file, monkeypatch, capsys, precision):
    monkeypatch.setattr("evaluator.inception.is_imitated", lambda dtype, device: dtype != torch.float32)
    for load in (load_inception, load_float_inception):
        load(weight_file, precision=precision)
        said = capsys.readouterr().err
        assert f"feature_precision={precision}: torch finds no instructions" in said and "slower" in said
        load(weight_file)
        assert "slower" not in capsys.readouterr().err


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", (1e-4, 2e-2)), ("float16", (1e-5, 2e-3))])
def test_half_precision_is_an_approximation_and_says_so(weight_file, arrays, precision, error):
    extractor = load_inception(weight_file, precision=precision)
    assert extractor.approximate and extractor.precision == precision
    features = extractor(image(arrays, 2))
    assert features.pool.dtype == torch.float32
    assert error[0] < relative(features.pool, arrays["pool"][2:3]) < error[1]


@pytest.mark.slow
def test_float64_extractor_is_exact(weight_file, arrays):
    extractor = load_inception(weight_file, precision="float64")
    assert_close(extractor(image(arrays, 2)).pool, arrays["pool"][2:3], atol=1e-12)


def test_wrong_options_are_named(network, weight_file):
    with pytest.raises(ValueError, match="precision is 'half'; expected one of float64"):
        load_inception(weight_file, precision="half")
    with pytest.raises(ValueError, match="dtype is torch.float64"):
        FastInception(network, dtype=torch.float64)
    with pytest.raises(ValueError, match="batch is 0"):
        FastInception(network, batch=0)
    with pytest.raises(ValueError, match="stem_batch is 0"):
        FastInception(network, stem_batch=0)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8).byte()],
    ids=["float", "one image", "grey"],
)
def test_what_is_no_8_bit_rgb_batch_is_refused(network, images):
    for run in (network, FastInception(network)):
        with pytest.raises(ValueError, match=r"expects uint8 \[B, 3, H, W\]"):
            run(images)
