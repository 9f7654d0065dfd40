import json

import numpy as np
import pytest
import torch

from evaluator.moments import Statistics
from evaluator.reference import image_reference, open_reference, write_reference
from tests.evaluator.toy import MemoryImages, tensor, toy_images, write_folder

PIXELS = toy_images(6)


def statistics(dim, seed=0, count=None):
    draws = np.random.default_rng(seed)
    rows = draws.standard_normal((3 * dim, dim))
    return Statistics(rows.mean(0), np.cov(rows, rowvar=False), count)


def write_adm(path, **changes):
    """A file as the ADM evaluator has them: float statistics of a larger set, some images."""
    pool, spatial = statistics(5), statistics(4, 1)
    arrays = {
        "mu": pool.mean,
        "sigma": pool.covariance,
        "mu_s": spatial.mean.astype(np.float32),
        "sigma_s": spatial.covariance,
        "arr_0": PIXELS,
        **changes,
    }
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return pool, spatial


def test_foreign_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "VIRTUAL.npz"
    pool, spatial = write_adm(path)
    reference = open_reference(path)
    assert reference.statistics.keys() == {"pool", "spatial"}
    np.testing.assert_array_equal(reference.statistics["pool"].covariance, pool.covariance)
    assert reference.statistics["spatial"].mean.dtype == np.float64
    assert reference.statistics["pool"].count is None
    assert reference.images.count == 6 and torch.equal(
        next(reference.images.batches(6)).images, tensor(PIXELS)
    )
    assert not reference.facts()["verified"] and reference.image_set == "unknown"
    facts = reference.facts()
    assert facts["stored_images"] == 6 and facts["count"] is None and len(facts["sha256"]) == 64
    assert (facts["height"], facts["width"]) == (16, 16)
    reference.require_network("inception", "pool", "anything", False)  # nothing is known that could disagree


def test_statistics_alone_are_enough(tmp_path):
    write_adm(tmp_path / "a.npz", mu_s=None, sigma_s=None, arr_0=None)
    reference = open_reference(tmp_path / "a.npz")
    assert set(reference.statistics) == {"pool"} and reference.images is None
    assert reference.facts()["height"] is None


def test_ours_come_back_with_their_protocol(tmp_path):
    given = {"pool": statistics(5, count=60), "dinov2": statistics(3, 2, 60)}
    about = {
        "image_set": "validation",
        "images": {"height": 16, "width": 16, "count": 6},
        "extractors": {"inception": {"weights_hash": "abc", "approximate": False}},
    }
    path = tmp_path / "new" / "ref.npz"
    write_reference(path, given, about, MemoryImages(tensor(PIXELS)), keep_images=3)
    reference = open_reference(path)
    for kind, values in given.items():
        np.testing.assert_array_equal(reference.statistics[kind].mean, values.mean)
        np.testing.assert_array_equal(reference.statistics[kind].covariance, values.covariance)
        assert reference.statistics[kind].count == 60
    assert (
        reference.facts()["verified"]
        and reference.image_set == "validation"
        and reference.protocol["format"] == 2
    )
    assert torch.equal(next(reference.images.batches(6)).images, tensor(PIXELS)[::2])  # evenly spaced
    with np.load(path) as arrays:  # others read the same file without noticing
        assert {"mu", "sigma", "arr_0", "protocol", "mu_dinov2", "sigma_dinov2"} == set(arrays.files)
        assert arrays["arr_0"].shape == (3, 16, 16, 3)
        assert json.loads(str(arrays["protocol"]))["counts"] == {"pool": 60, "dinov2": 60}
    assert not list(path.parent.glob(".*"))
    write_reference(path, given, about, MemoryImages(tensor(PIXELS)), keep_images=4)  # not the first four
    stored = next(open_reference(path).images.batches(6)).images
    assert torch.equal(stored, tensor(PIXELS)[[0, 1, 3, 4]])
    write_reference(path, given, about)
    assert open_reference(path).images is None


def test_another_network_is_refused(tmp_path):
    about = {"extractors": {"inception": {"weights_hash": "abc", "approximate": False}}}
    write_reference(tmp_path / "a.npz", {"pool": statistics(5)}, about)
    reference = open_reference(tmp_path / "a.npz")
    reference.require_network("inception", "pool", "abc", False)
    reference.require_network("dinov2", "dinov2", "xyz", False)
    with pytest.raises(ValueError, match="weights abc, the samples are measured with xyz"):
        reference.require_network("inception", "pool", "xyz", False)
    with pytest.raises(ValueError, match="full precision, the samples are measured in reduced"):
        reference.require_network("inception", "pool", "abc", True)


def test_images_are_a_reference_too(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS)
    for path in (tmp_path / "a.npz", write_folder(tmp_path / "png", PIXELS)):
        reference = open_reference(path)
        assert not reference.statistics and reference.images.count == 6 and reference.facts()["verified"]
        assert reference.image_set == "images" and reference.facts()["count"] == 6
    cropped = open_reference(path, transform=lambda image: image.crop((0, 0, 8, 8)))
    assert tuple(cropped.images.size) == (8, 8)
    own = image_reference(MemoryImages(tensor(PIXELS)), "originals")
    assert own.image_set == "originals" and own.facts()["height"] == 16


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sigma": None}, "only one of mu and sigma"),
        ({"mu": np.zeros((5, 1))}, "no mean"),
        ({"sigma": np.zeros((5, 4))}, "no mean"),
        ({"mu": np.full(5, np.nan)}, "not finite"),
        ({"mu": np.array([{}] * 5)}, "cannot be read"),
        ({"protocol": np.array("[1]")}, "unknown format"),
        ({"protocol": np.array("{")}, "cannot be read"),
    ],
)
def test_damaged_statistics_are_refused(tmp_path, changes, message):
    write_adm(tmp_path / "a.npz", **changes)
    with pytest.raises(ValueError, match=message):
        open_reference(tmp_path / "a.npz")


def test_nothing_to_read_or_write(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_reference(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK no")
    with pytest.raises(ValueError, match="bad.npz cannot be read"):
        open_reference(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="suffix .npz"):
        write_reference(tmp_path / "a.npy", {"pool": statistics(3)}, {})
    with pytest.raises(ValueError, match="no statistics"):
        write_reference(tmp_path / "a.npz", {}, {})
