"""The same images through torch-fidelity and through our evaluator, with the same deterministic Inception weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from evaluator import protocol as protocols
from evaluator.evaluator import Evaluator
from evaluator.image_files import open_images
from evaluator.inception import load_inception
from tests.evaluator.test_evaluator import golden_network
from tests.parity import golden

torch_fidelity = pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weight file in the published layout."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    state = golden_network().state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of images, generated and real."""
    arrays, root = golden("eval_end_to_end"), tmp_path_factory.mktemp("images")
    for kind in ("fake", "real"):
        (root / kind).mkdir()
        for i, pixels in enumerate(np.asarray(arrays[kind])):
            Image.fromarray(pixels).save(root / kind / f"{i:03d}.png")
    return root / "fake", root / "real"


def test_agrees_on_the_same_images(weights, folders, monkeypatch):
    fake, real = folders
    theirs = torch_fidelity.calculate_metrics(
        input1=str(fake),
        input2=str(real),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        prc_feature_extractor="inception-v3-compat",
        isc_splits=4,
        kid_subsets=5,
        kid_subset_size=12,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
        batch_size=8,
    )
    rule = protocols.PROTOCOLS["torch-fidelity"]
    small = {"is_splits": 4, "kid_subsets": 5, "kid_subset_size": 12}
    monkeypatch.setitem(protocols.PROTOCOLS, "torch-fidelity", type(rule)(**{**vars(rule), **small}))
    evaluator = Evaluator(
        networks={"inception": load_inception(weights)},
        metrics=("fid", "is", "kid", "precision_recall"),
        protocol="torch-fidelity",
        num_images=24,
    )
    for images, positions in open_images(real).batches(8):
        evaluator.update_reference(images, positions)
    for images, positions in open_images(fake).batches(8):
        evaluator.update(images, positions)
    ours = evaluator.result()
    assert ours["fid_24"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours["is_24"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["is_24_std"] == pytest.approx(theirs["inception_score_std"], rel=5e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)
