"""Fitting a codebook: equals plain k-means, however the work is divided or interrupted; the run folder it writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.config import read_yaml
from common.images import to_float
from data import ImageFolder
from data.still import still_source
from jobs.fit_codebook import fit, fit_codebook
from jobs.options.fit_codebook import FitOptions
from modeling.pretrained.teachers import build_teacher, load_teacher
from modeling.quantizers import VectorQuantizer
from modeling.tokenizers.cluster import Cluster
from storage.weights import load_weights, write_weights
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.modeling.quantizers.test_kmeans import naive
from tests.parity import fill_module
from training.feature_clustering import FeatureClustering

timm = pytest.importorskip("timm")
NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def teacher_section(tmp_path_factory):
    """A ViT with four patches and random weights in a local file."""
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    save_file(fill_module(timm.create_model(NAME)).state_dict(), path)
    return {"name": NAME, "weights": str(path), "input_size": 32}


@pytest.fixture
def options(teacher_section, image_folder, tmp_path):
    def make(**changes):
        settings = {
            "teacher": teacher_section,
            "data": {"name": "image_folder", "path": str(image_folder), "random_flip": True},
            "output": str(tmp_path / "run"),
            "image_size": 16,
            "codebook_size": 5,
            "iterations": 3,
            "batch_size": 2,
            "num_workers": 0,
        }
        return FitOptions(**settings | changes)

    return make


@pytest.fixture
def vectors(teacher_section, image_folder):
    """Features [28, 192] of the seven images, computed at once."""
    source = ImageFolder(path=image_folder, image_size=16)
    images = to_float(torch.stack([source.load(i, np.random.default_rng(0))[0] for i in range(7)]))
    teacher = build_teacher(name=NAME, input_size=32)
    load_weights(teacher_section["weights"], teacher.network, ("head.*",))
    return teacher(images).flatten(2).transpose(1, 2).flatten(0, 1)


def opened(folder):
    """The tokenizer of a run folder, put together by hand."""
    section = read_yaml(folder / "config.yaml")["tokenizer"]
    assert section.pop("name") == "cluster" and section["quantizer"].pop("name") == "vq"
    model = Cluster(
        teacher=build_teacher(**section["teacher"]),
        quantizer=VectorQuantizer(**section["quantizer"]),
        image_size=section["image_size"],
    )
    load_weights(folder / "model.safetensors", model)
    return model.eval()


def run(options):
    fit_codebook(options)
    return opened(Path(options.output))


def start(vectors, seed=42, count=5):
    """The features that the script starts from: places drawn by the seed."""
    return vectors[np.random.default_rng(seed).choice(len(vectors), count, replace=False)]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_codes_are_those_of_plain_kmeans(options, vectors, metric, capsys):
    model = run(options(metric=metric))
    expected = naive(vectors, start(vectors), 3, metric)
    torch.testing.assert_close(model.quantize.embedding.weight.data, expected, atol=1e-4, rtol=1e-4)
    printed = capsys.readouterr().out
    assert "iteration 3/3 | mean squared distance" in printed
    assert "5 codes of 192 channels, 4 tokens" in printed
    folder = Path(options().output)
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "metrics.json", "model.safetensors"]
    measured = json.loads((folder / "metrics.json").read_text())
    centroids = naive(vectors, start(vectors), 2, metric)
    compared = torch.nn.functional.normalize(vectors, dim=1) if metric == "cosine" else vectors
    distances = torch.cdist(compared.double(), centroids.double()).square().min(dim=1)
    assert measured["mean_squared_distance"] == pytest.approx(distances.values.mean().item(), rel=1e-3)
    assert measured["codebook_usage"] == len(distances.indices.unique()) / 5


def test_an_interrupted_job_goes_on_and_a_finished_one_does_nothing(options, monkeypatch, tmp_path, capsys):
    whole = run(options(output=str(tmp_path / "whole"))).quantize.embedding.weight
    plain, passes = FeatureClustering.one_pass, []

    def fail_at_second(*arguments):
        passes.append(arguments[-1])
        if len(passes) == 2:
            raise OSError("disk full")
        return plain(*arguments)

    monkeypatch.setattr(FeatureClustering, "one_pass", fail_at_second)
    with pytest.raises(OSError, match="disk full"):
        run(options())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"another codebook \(fit.codebook_size was 5, is now 6\)"):
        run(options(codebook_size=6))
    assert torch.equal(run(options()).quantize.embedding.weight, whole)
    assert passes == [f"iteration {i}/3" for i in (1, 2, 2, 3)]
    run(options())
    assert len(passes) == 4 and "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="fit.seed was 42, is now 1"):
        run(options(seed=1))


@needs_fork
def test_two_processes_equal_one(options, vectors, tmp_path):
    settings, device = options(), torch.device("cpu")
    teacher = load_teacher(**settings.teacher)
    source = still_source(settings.data, split="train", config={}, image_size=16)
    loading = {"batch_size": 2, "num_workers": 0, "max_skipped": 0.01}
    expected = naive(vectors, start(vectors), 3, "cosine")

    def work(rank):
        clustering = FeatureClustering(teacher, source, device, 5, "cosine", 42, loading)
        centroids, measured = fit(clustering, 3, {"a": 1}, tmp_path)
        torch.testing.assert_close(centroids, expected, atol=1e-4, rtol=1e-4)
        assert measured["iterations"] == 3

    in_two_processes(work, tmp_path)


def test_it_stops_when_nothing_changes_any_more(options, tmp_path):
    run(options(iterations=100))
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["converged"] and measured["iterations"] < 20


def test_unreadable_images_and_too_many_codes(options, image_folder, tmp_path):
    folder = shutil.copytree(image_folder, tmp_path / "images")
    broken = sorted((folder / "blue").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:50])
    data = {"name": "image_folder", "path": str(folder)}
    # 20 of 28 places: some lie in the unreadable image and are drawn again.
    with pytest.raises(ValueError, match=f"1 of . images cannot be read, .*{broken.name}"):
        run(options(data=data, codebook_size=20))
    assert not (tmp_path / "run").exists()  # nothing was written
    model = run(options(data=data, codebook_size=20, max_skipped=0.9))
    assert model.quantize.embedding.weight.norm(dim=1).min() > 0.99
    with pytest.raises(
        ValueError, match=r"codebook_size=29 is more than the 28 features of 7 images \(4 each\)"
    ):
        run(options(codebook_size=29, output=str(tmp_path / "more")))
    with pytest.raises(ValueError, match="codebook_size=9 is more than the 8 features of 2 images"):
        run(options(codebook_size=9, images=2, output=str(tmp_path / "few")))
    with pytest.raises(ValueError, match="teacher.gird is not an option"):
        run(options(teacher={"name": NAME, "gird": 2}))
    with pytest.raises(ValueError, match="iterations=0 must be at least 1"):
        options(iterations=0)


def test_a_damaged_state_is_named(options, tmp_path):
    (tmp_path / "run").mkdir()
    state = tmp_path / "run" / "centroids.safetensors"
    state.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="centroids.safetensors is damaged"):
        run(options())
    write_weights(state, {"centroids": torch.zeros(2, 3)}, {"state": "[1]"})
    with pytest.raises(ValueError, match="centroids.safetensors is damaged"):
        run(options())
