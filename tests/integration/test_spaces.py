"""scripts/evaluate.py in all six feature spaces, with small networks and everything else real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluator.metrics.fid import frechet_distance
from evaluator.moments import Moments
from evaluator.networks import NETWORKS
from evaluator.reference import open_reference
from evaluator.space_network import load_space
from evaluator.spaces import SPACES
from jobs.evaluate import evaluate
from jobs.options.evaluate import EvaluateOptions
from tests.evaluator.spaces import VISION, small_networks, small_sizes, write_small_networks
from tests.evaluator.toy import tensor, toy_images, write_folder

pytest.importorskip("timm")
ROOT = Path(__file__).resolve().parents[2]
REAL, FAKE = toy_images(30, seed=1, side=32), toy_images(20, seed=2, side=32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Samples, real images, and weight files."""
    folder = tmp_path_factory.mktemp("spaces")
    write_folder(folder / "fake", FAKE)
    write_folder(folder / "real", REAL)
    write_small_networks(folder / "weights")
    return folder


@pytest.fixture
def small(folders, monkeypatch):
    monkeypatch.setenv("TITOK_WEIGHTS", str(folders / "weights"))
    for name, network in small_networks().items():
        monkeypatch.setitem(NETWORKS, name, network)


def run(folder, **options):
    options = {"metrics": ["fdr6"], "output": str(folder / "one.json"), "batch_size": 8, **options}
    evaluate(EvaluateOptions(**options))
    return json.loads(Path(options["output"]).read_text())


def make_reference(folders):
    """Of all spaces in one pass."""
    if not (folders / "ref.npz").exists():
        real = {"samples": str(folders / "real"), "make_ref": str(folders / "ref.npz")}
        evaluate(EvaluateOptions(**real, metrics=["sfid", "fdr6"], reference_set="training", batch_size=8))
    return str(folders / "ref.npz")


def test_one_command_measures_all_spaces_in_any_number_of_processes(folders, small):
    reference = make_reference(folders)
    statistics = open_reference(reference).statistics
    assert set(statistics) == {"pool", "spatial", *VISION}
    result = run(folders, samples=str(folders / "fake"), reference=reference)
    values, facts = result["metrics"], result["protocol"]
    ratios = [values[f"fdr_{name}_20"] for name in SPACES]
    assert values["fdr6_20"] == pytest.approx(sum(ratios) / 6)
    mae = load_space(SPACES["mae"], **small_sizes("mae"))
    moments = [Moments(48), Moments(48)]
    for sums, images in zip(moments, (REAL, FAKE), strict=True):
        sums.update(mae(tensor(images)).mae)
    real, fake = (sums.result() for sums in moments)
    expected = frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance, count1=30, count2=20)
    assert values["fd_in_mae_20"] == pytest.approx(expected, rel=1e-4)
    assert values["fdr_mae_20"] == pytest.approx(values["fd_in_mae_20"] / 0.04)
    assert facts["fdr_mae"]["constant"] == 0.04  # divided by it, and says so
    about = facts["extractors"]["mae"]
    assert about["precision"] == "float32" and about["weights_hash"] == mae.weights_hash
    assert about["recipe"]["side"] == 224 and facts["reference"]["image_set"] == "training"
    arguments = [f"samples={folders}/fake", f"reference={reference}", "metrics=[fdr6]", "batch_size=8"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.evaluator.spaces", *arguments, f"output={folders}/two.json"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    two = json.loads((folders / "two.json").read_text())
    assert two["metrics"] == pytest.approx(values, rel=1e-4)  # batches of other sizes round differently
    assert two["protocol"] == facts


def test_without_a_space_there_is_no_mean(folders, small, monkeypatch, tmp_path):
    reference = make_reference(folders)
    with np.load(reference) as arrays:
        kept = {key: arrays[key] for key in arrays.files if key not in ("mu_mae", "sigma_mae", "protocol")}
    np.savez(tmp_path / "five.npz", **kept)
    monkeypatch.setattr("jobs.evaluation_run.load_networks", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ValueError, match="holds no statistics of mae features"):
        run(tmp_path, samples=str(folders / "fake"), reference=str(tmp_path / "five.npz"))
    monkeypatch.undo()
    for name, network in small_networks().items():
        monkeypatch.setitem(NETWORKS, name, network)
    monkeypatch.setenv("TITOK_WEIGHTS", str(folders / "weights"))
    broken = NETWORKS["mae"].load

    def broken_mae(*arguments, **options):
        extractor = broken(*arguments, **options)
        extractor.network.norm.weight.data.fill_(float("nan"))
        return extractor

    monkeypatch.setitem(NETWORKS, "mae", type(NETWORKS["mae"])(broken_mae, ("mae",), precisions=True))
    with pytest.raises(ValueError, match="not finite.*fdr6 cannot be computed: fdr_mae missing"):
        run(tmp_path, samples=str(folders / "fake"), reference=reference)
    result = json.loads((tmp_path / "one.json").read_text())
    assert "fdr_clip_20" in result["metrics"] and "fdr6_20" not in result["metrics"]
    assert set(result["errors"]) == {"fdr_mae", "fdr6"}
