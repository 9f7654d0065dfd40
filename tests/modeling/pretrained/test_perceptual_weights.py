"""Perceptual weights that cannot be had end the run, or are done without if the configuration allows it."""

import pytest
import torch

from modeling.pretrained import downloads
from modeling.pretrained.perceptual_weights import find_perceptual
from storage.fetching import FetchError

OPTIONS = {"lpips_weight": 1.0, "convnext_weight": 0.1, "lpips_path": None, "convnext_path": None}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise FetchError("no route")

    monkeypatch.setattr(downloads, "fetch", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def test_required_weights_end_the_run_with_what_to_do(offline):
    with pytest.raises(ValueError, match="vgg16.*lpips_path.*required=false"):
        find_perceptual(**OPTIONS, required=True)


def test_training_goes_on_without_the_term_only_if_allowed(offline, capsys):
    assert find_perceptual(**OPTIONS, required=False) is None
    assert "WITHOUT the perceptual term" in capsys.readouterr().err


def test_a_mistyped_path_is_an_error_even_if_the_term_is_optional(offline, tmp_path):
    options = OPTIONS | {"lpips_path": str(tmp_path / "nowhere.pth"), "convnext_weight": 0.0}
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        find_perceptual(**options, required=False)
