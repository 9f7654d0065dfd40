import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluator.evaluator import Evaluator
from evaluator.float_rfid import FloatInception, FloatRFID, load_float_inception
from evaluator.inception_fast import FastInception
from evaluator.inception_network import InceptionV3
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.evaluator.toy import ToyFloat, ToyInception, tensor, toy_images
from tests.parity import filled


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    """Filled weights, scaled so that features differ between images."""
    net = filled(InceptionV3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("conv.weight"):
                parameter.mul_(1.5)
    return net


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def noise(count: int, height: int, width: int) -> torch.Tensor:
    levels = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(height))
    return levels.to(torch.uint8)


def half_pixel(image: np.ndarray, size: int) -> np.ndarray:
    """float [C, H, W] -> [C, size, size]: bilinear between centres of pixels, in float64."""
    for axis in (1, 2):
        length = image.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(places).astype(int)
        high, share = np.minimum(low + 1, length - 1), places - low
        share = share[:, None] if axis == 1 else share
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def test_features_are_those_of_the_network_after_another_resize_and_range(network):
    float_network = FloatInception(network, weights_hash="x")
    whole = noise(1, 299, 299)
    # (x - 128) / 128 of 8-bit values is 2 y - 1 of y = x / 256.
    features = float_network(whole.double() / 256)
    assert features.shape == (1, 2048) and features.dtype == torch.float32
    assert relative(features, FastInception(network)(whole).pool) < 2e-6
    small = noise(1, 40, 53)
    large = torch.from_numpy(half_pixel(small[0].double().numpy() / 255, 299))[None]
    assert relative(float_network(small / 255.0), float_network(large)) < 2e-6
    # TensorFlow's grid is not this one.
    assert relative(FastInception(network)(small).pool, float_network(small / 256.0)) > 1e-3
    assert float_network(torch.zeros(0, 3, 8, 8)).shape == (0, 2048)


def test_wrong_images_and_precision_are_refused(network, tmp_path, capsys):
    with pytest.raises(ValueError, match="precision='float64'.*float32, bfloat16"):
        FloatInception(network, weights_hash="x", precision="float64")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_float_inception(tmp_path / "weights.safetensors", precision="bfloat16")
    assert loaded.approximate and not loaded.official and len(loaded.weights_hash) == 64
    assert "not the published file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="uint8.*expected float"):
        loaded(noise(1, 8, 8))


def pairs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Originals, and reconstructions that 8 bit would round away."""
    originals = tensor(toy_images(count)).float() / 255
    return originals, originals + 0.4 / 255 * torch.linspace(-1, 1, count)[:, None, None, None]


def test_it_is_the_formula_on_features_of_unrounded_images():
    originals, results = pairs(40)
    rfid, rounded = (
        FloatRFID(extractor=ToyFloat()),
        Evaluator(networks={"i": ToyInception()}, metrics=["rfid"]),
    )
    for part in (slice(0, 25), slice(25, 40)):
        rfid.update_pairs(results[part], originals[part])
        rounded.update_pairs(results[part], originals[part])
    one, two = (ToyFloat()(x).double().numpy() for x in (originals, results.clamp(0, 1)))
    first, second = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    roots = np.linalg.eigvals(first @ second).real.clip(0) ** 0.5
    distance = one.mean(0) - two.mean(0)
    expected = distance @ distance + np.trace(first + second - 2 * np.diag(roots))
    assert rfid.result()["rfid_40"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-7 and abs(rounded.result()["rfid_40"]) < expected / 100
    assert (
        "half-pixel" in rfid.facts()["rfid"]
        and rfid.facts()["extractors"]["inception"]["weights_hash"] == "toy"
    )
    with pytest.raises(ValueError):
        FloatRFID(extractor=ToyFloat()).result()


@needs_fork
def test_two_processes_have_the_number_of_one(tmp_path):
    originals, results = pairs(12)
    alone = FloatRFID(extractor=ToyFloat())
    alone.update_pairs(results, originals)
    expected = alone.result()["rfid_12"]

    def work(rank: int) -> None:
        rfid = FloatRFID(extractor=ToyFloat())
        rfid.update_pairs(results[rank::2], originals[rank::2])
        assert rfid.result()["rfid_12"] == pytest.approx(expected, rel=1e-3)

    in_two_processes(work, tmp_path)
