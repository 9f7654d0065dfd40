import sys

import numpy as np
import pytest
import torch
from PIL import Image

from evaluator.dgm_dinov2 import load_dino, resize, resize_positions
from evaluator.evaluator import Evaluator
from tests.evaluator.toy import tensor, toy_images
from tests.parity import fill_module

timm = pytest.importorskip("timm")
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
NAME = "vit_large_patch14_dinov2.lvd142m"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny network of the published kind, trained at 70 pixels, as a file in the original release's names."""
    network = timm.create_model(NAME, pretrained=False, img_size=70, num_classes=0, **TINY)
    path = tmp_path_factory.mktemp("dino") / "weights.pth"
    torch.save({**fill_module(network).state_dict(), "mask_token": torch.zeros(1, 32)}, path)
    return network.eval(), path


def test_a_local_file_gives_the_class_token(published):
    network, path = published
    extractor = load_dino(path, device="cpu", side=70, **TINY)
    images = tensor(toy_images(3, side=32))
    features = extractor(images).dinov2_dgm
    pixels = resize(images, 70)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = network.forward_features(normal)[:, 0]
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert (
        extractor.dims == {"dinov2_dgm": 32}
        and len(extractor.weights_hash) == 16
        and not extractor.approximate
    )


def test_positions_are_interpolated_to_another_size(published):
    _, path = published
    extractor = load_dino(path, device="cpu", side=42, **TINY)
    assert extractor(tensor(toy_images(2))).dinov2_dgm.shape == (2, 32)
    state = torch.load(path, weights_only=True)
    small = resize_positions(state["pos_embed"], 3)
    assert torch.equal(extractor.model.pos_embed, small) and small.shape == (1, 10, 32)
    # Output i is sampled at (i + 0.5) / factor - 0.5 with factor 3.1 / 5: a ramp away from the border shows it.
    ramp = torch.arange(37.0).expand(37, 37).reshape(1, 37 * 37, 1)
    row = resize_positions(torch.cat([torch.zeros(1, 1, 1), ramp], 1), 16)[0, 1:, 0].view(16, 16)[8]
    expected = (torch.arange(16) + 0.5) / (16.1 / 37) - 0.5
    torch.testing.assert_close(row[2:-2], expected[2:-2], atol=0.06, rtol=0)  # a cubic is not quite linear
    assert (row - (torch.arange(16) + 0.5) / (16 / 37) + 0.5).abs().max() > 0.15
    same = torch.randn(1, 26, 4)
    assert resize_positions(same, 5) is same
    with pytest.raises(ValueError, match="11 position embeddings are no square"):
        resize_positions(torch.zeros(1, 12, 4), 3)


def test_images_are_resized_as_pillow_does():
    images = tensor(toy_images(2, side=64))
    for side in (40, 100):
        ours = resize(images, side).mul(255)
        for image, result in zip(images, ours, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            theirs = np.array(picture.resize((side, side), Image.Resampling.BICUBIC))
            difference = (result.permute(1, 2, 0) - torch.from_numpy(theirs).float()).abs()
            assert difference.max() <= 1 and difference.mean() < 0.01
    assert torch.equal(resize(images, 64), images.float() / 255)


def test_it_feeds_the_evaluator(published):
    extractor = load_dino(published[1], device="cpu", side=28, **TINY)
    evaluator = Evaluator(networks={"dinov2_dgm": extractor}, metrics=("fd_dinov2_dgm",))
    images = tensor(toy_images(40))
    evaluator.update(images[:20])
    evaluator.update_reference(images[20:])
    first = evaluator.result()["fd_dinov2_dgm_20"]
    same = Evaluator(networks={"dinov2_dgm": extractor}, metrics=("fd_dinov2_dgm",))
    same.update(images[:20])
    same.update_reference(images[:20])
    assert first > 0.01 and abs(same.result()["fd_dinov2_dgm_20"]) < 1e-6


def test_missing_parts_are_named(published, tmp_path, monkeypatch):
    torch.save({"cls_token": torch.zeros(1, 1, 32)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="part.pth does not hold the weights"):
        load_dino(tmp_path / "part.pth", device="cpu", side=28, **TINY)
    with pytest.raises(FileNotFoundError):
        load_dino(tmp_path / "none.pth", device="cpu")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install -r requirements-teachers.txt"):
        load_dino(published[1], device="cpu")
