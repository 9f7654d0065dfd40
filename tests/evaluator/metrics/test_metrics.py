import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.build import ConfigError
from evaluator.evaluator import Evaluator
from evaluator.feature_store import FeatureStore
from evaluator.metrics import METRICS, check_metrics, check_names, result_name, usual_metrics
from evaluator.metrics.base import Metric
from evaluator.metrics.image_quality import PairMetric
from evaluator.moments import Moments, Statistics
from evaluator.networks import NETWORKS, Network, load_networks
from evaluator.reference import open_reference, write_reference
from jobs.evaluate import evaluate
from jobs.options.evaluate import EvaluateOptions
from tests.evaluator.toy import ToyInception, put_in_place, tensor, toy_images
from training.evaluation_settings import GeneratorEvaluation, TokenizerEvaluation


@pytest.mark.parametrize(
    "metric, count, name",
    [
        ("fid", 50_000, "fid"),
        ("fid", 5000, "fid_5k"),
        ("rfid", 1234, "rfid_1234"),
        ("is", 100_000, "is_100k"),
        ("fd_dinov2_dgm", 10_000, "fd_dinov2_dgm_10k"),
        ("kid", 10_000, "kid"),
        ("psnr", 7, "psnr"),
    ],
)
def test_biased_metrics_carry_their_count(metric, count, name):
    assert result_name(metric, count) == name


@pytest.mark.parametrize("image_set", ["training", "unknown"])
def test_rfid_needs_the_validation_images(image_set):
    with pytest.raises(
        ConfigError, match="metrics: rfid compares reconstructions with the validation images"
    ):
        check_names(["is", "rfid"], image_set)
    check_names(["fid", "gfid"], image_set)
    check_names(["rfid"], "validation")
    check_names(["rfid"], "originals")
    check_names(["rfid", "gfid"], "images", same_count=True)
    with pytest.raises(ConfigError, match="another number of images"):
        check_names(["rfid"], "images", same_count=False)
    with pytest.raises(ConfigError, match="gfid compares generated images with training images"):
        check_names(["gfid"], "originals")


def test_metric_names_are_checked():
    check_metrics(list(METRICS))
    with pytest.raises(ConfigError, match="'fidd' is unknown .*did you mean 'fid'"):
        check_metrics(["fidd"])
    with pytest.raises(ConfigError, match="names one twice"):
        check_metrics(["fid", "fid"])
    with pytest.raises(ConfigError, match="names no metric"):
        check_metrics([])


class MeanDistance(Metric):
    """Squared distance of the means; a reference file may hold them."""

    counted = True
    in_references = True
    keeps = Moments

    def compute(self, own, reference, *, settings, **_):
        return [float(((own.mean - reference.mean) ** 2).sum()) * settings.neighbours]

    def facts(self, settings, count, reference_count):
        return {"factor": settings.neighbours}


class MeanError(PairMetric):
    """Of pairs, without a network."""

    def distance(self, images, reconstructions, **_):
        return (images - reconstructions).abs().mean((1, 2, 3))


class SmallestDistance(Metric):
    """From a feature to one of the reference, on a space of its own."""

    spread = True
    keeps = FeatureStore

    def compute(self, own, reference, **_):
        nearest = torch.cdist(own.double(), reference.double()).amin(1)
        return [float(nearest.mean()), float(nearest.std(correction=0))]


class Brightness:
    """A space of one feature."""

    approximate, weights_hash, dims = False, "none", {"brightness": 1}

    def __call__(self, images):
        return SimpleNamespace(brightness=images.float().mean((1, 2, 3))[:, None])


@pytest.fixture
def new_metrics(monkeypatch):
    """Two metrics, one on a new space, each added as one object."""
    mean = MeanDistance(
        name="mean_distance", features="pool", usual_for=("samples",), training=("generator",)
    )
    monkeypatch.setitem(METRICS, mean.name, mean)
    monkeypatch.setitem(METRICS, "dark", SmallestDistance(name="dark", features="brightness"))
    monkeypatch.setitem(NETWORKS, "brightness", Network(lambda *_, **__: Brightness(), ("brightness",)))
    put_in_place(monkeypatch, "inception", ToyInception())


REAL, FAKE = toy_images(60, seed=1), toy_images(50, seed=2)


def test_a_new_metric_is_measured_beside_the_others(new_metrics):
    asked = ["mean_distance", "fid", "dark"]
    networks = load_networks(asked, {}, device="cpu")
    assert list(networks) == ["inception", "brightness"]
    evaluator = Evaluator(networks=networks, metrics=asked)
    evaluator.update(tensor(FAKE))
    evaluator.update_reference(tensor(REAL))
    assert len(evaluator.samples.collectors) == 2  # FID and the new metric share their sums
    values = evaluator.result()
    toy, bright = ToyInception(), Brightness()
    means = [toy(tensor(images)).pool.double().mean(0) for images in (FAKE, REAL)]
    expected = 3 * float((means[0] - means[1]).square().sum())
    nearest = torch.cdist(*(bright(tensor(images)).brightness.double() for images in (FAKE, REAL))).amin(1)
    assert list(values) == ["mean_distance_50", "fid_50", "dark", "dark_std"]
    assert values["mean_distance_50"] == pytest.approx(expected)
    assert values["dark"] == pytest.approx(float(nearest.mean()))
    assert evaluator.facts()["factor"] == 3 and "brightness" in evaluator.facts()["extractors"]


def test_a_new_metric_of_pairs_is_one_object(monkeypatch):
    monkeypatch.setitem(METRICS, "mean_error", MeanError(name="mean_error", training=("tokenizer",)))
    assert load_networks(["mean_error"], {}, device="cpu") == {}
    evaluator = Evaluator(networks={}, metrics=["mean_error", "psnr"])
    images, originals = tensor(FAKE), tensor(REAL)[:50]
    evaluator.update_pairs(images, originals)
    error = (images.double() - originals.double()).abs().mean() / 255
    assert list(evaluator.result()) == ["mean_error", "psnr"]
    assert evaluator.result()["mean_error"] == pytest.approx(float(error), rel=1e-6)
    assert TokenizerEvaluation(metrics=["mean_error"]).metrics == ["mean_error"]


def test_a_new_metric_has_a_name_and_a_place_everywhere(new_metrics):
    check_metrics(["mean_distance", "dark"])
    with pytest.raises(ConfigError, match="'mean_distanc' is unknown .*did you mean 'mean_distance'"):
        check_metrics(["mean_distanc"])
    assert result_name("mean_distance", 5000) == "mean_distance_5k" and result_name("dark", 5000) == "dark"
    assert [m.name for m in usual_metrics("samples")][-1] == "mean_distance"
    assert GeneratorEvaluation(metrics=["mean_distance"], reference="r.npz").metrics == ["mean_distance"]
    with pytest.raises(ConfigError, match="reference is missing; mean_distance"):
        GeneratorEvaluation(metrics=["mean_distance"])
    with pytest.raises(ConfigError, match="'dark' is not measured during training"):
        TokenizerEvaluation(metrics=["dark"])


def test_a_new_metric_is_in_the_program_and_in_its_references(new_metrics, tmp_path):
    for name, images in (("fake", FAKE), ("real", REAL)):
        np.savez(tmp_path / name, images)
    stored, options = tmp_path / "ref.npz", {"output": str(tmp_path / "result.json")}
    evaluate(EvaluateOptions(samples=str(tmp_path / "real.npz"), make_ref=str(stored)))
    results = []
    for reference in (stored, tmp_path / "real.npz"):
        evaluate(EvaluateOptions(samples=str(tmp_path / "fake.npz"), reference=str(reference), **options))
        results.append(json.loads((tmp_path / "result.json").read_text())["metrics"]["mean_distance_50"])
    assert results[0] == pytest.approx(results[1], rel=1e-6) and results[0] > 0
    make = EvaluateOptions(
        samples=str(tmp_path / "real.npz"), make_ref=str(stored), metrics=["dark", "mean_distance"]
    )
    with pytest.raises(ValueError, match="metrics dark have no statistics; expected some of .*mean_distance"):
        evaluate(make)


def test_features_of_a_new_space_are_kept_in_references(tmp_path):
    statistics = {
        "new_space": Statistics(np.zeros(3), np.eye(3), 7),
        "pool": Statistics(np.ones(2), np.eye(2)),
    }
    write_reference(tmp_path / "r.npz", statistics, {})
    found = open_reference(tmp_path / "r.npz").statistics
    assert list(found) == ["pool", "new_space"] and found["new_space"].count == 7
    assert set(np.load(tmp_path / "r.npz")) == {
        "mu", "sigma", "mu_new_space", "sigma_new_space", "protocol",
    }  # fmt: skip
