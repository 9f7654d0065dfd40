import pytest
import torch

from evaluator.metrics import METRICS
from evaluator.metrics.frechet_ratio import fdr6
from evaluator.moments import Moments, Statistics
from evaluator.protocol import PROTOCOLS
from evaluator.spaces import SPACES
from tests.parity import golden, golden_json


def test_ratios_and_their_mean_are_those_of_the_published_evaluator():
    arrays, facts = golden("fdr_spaces"), golden_json("fdr_spaces")
    ratios, distances = [], {}
    for name, key in zip(SPACES, facts["order"], strict=True):
        metric, moments = METRICS[f"fdr_{name}"], Moments(arrays[f"{key}_mu"].shape[0])
        moments.update(torch.from_numpy(arrays[f"{key}_generated"]))
        reference = Statistics(arrays[f"{key}_mu"], arrays[f"{key}_sigma"])
        ratio, distance = metric.compute(moments.result(), reference)
        expected = facts["per_space"][key]
        assert distance == pytest.approx(expected["exact"], rel=1e-8)
        assert ratio == pytest.approx(expected["ratio"], rel=1e-8)
        assert metric.result_names(220) == [f"fdr_{name}_220", f"fd_in_{name}_220"]
        assert metric.facts(PROTOCOLS["adm"], 220, 0)[metric.name]["constant"] == facts["constants"][key]
        ratios.append(ratio)
        distances[name] = distance
    mean = METRICS["fdr6"].compute(ratios, None)[0]
    assert mean == pytest.approx(facts["fdr6"], rel=1e-8) and mean == pytest.approx(
        fdr6(distances), rel=1e-12
    )
    del distances["mae"]
    with pytest.raises(ValueError, match="mean over 6 spaces, mae missing"):
        fdr6(distances)
    with pytest.raises(ValueError, match="maes: no spaces"):
        fdr6({**distances, "mae": 1.0, "maes": 1.0})


def test_another_reference_than_the_constant_belongs_to_is_said():
    metric, settings, samples = METRICS["fdr_mae"], PROTOCOLS["adm"], {"count": 5000}
    for shown, said in (("training", 0), ("unknown", 0), ("images", 1), ("validation", 1)):
        notes = metric.warnings(samples, {"count": 5000, "image_set": shown}, settings)
        assert len(notes) == said and all("training images of ImageNet" in note for note in notes)
    few = metric.warnings({"count": 500}, None, settings)
    assert few == ["fdr_mae: 500 images span 499 of 1024 dimensions at most; it is far too high"]
