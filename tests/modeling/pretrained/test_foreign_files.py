"""Training files of taming and LlamaGen, in their layouts and full sizes, through the front door."""

import pytest
import torch

from modeling.pipeline import load_generator, load_tokenizer
from modeling.pretrained.catalog import RELEASES
from tests.parity import manifest


@pytest.mark.parametrize(
    ("name", "key"), [("llamagen-vq8", "model"), ("taming-vqgan-f16", "state_dict"), ("llamagen-b", "model")]
)
def test_loads_strictly_by_name(name, key, tmp_path, monkeypatch):
    release = RELEASES[name]
    state = {k: torch.full(shape, 0.01) for k, (shape, _) in manifest(release.manifest).items()}
    extra = {"loss.discriminator.main.0.weight": torch.zeros(2)} if key == "state_dict" else {}
    torch.save({key: state | extra, "steps": 3, "optimizer": {"lr": 0.1}}, tmp_path / release.file)
    monkeypatch.setenv("TITOK_WEIGHTS", str(tmp_path))
    load = load_tokenizer if release.kind == "tokenizer" else load_generator
    model = load(name)
    assert sum(t.numel() for t in model.state_dict().values()) == release.parameters
    assert all(bool((t == 0.01).all()) for t in model.state_dict().values())

    state.pop(next(iter(state)))
    torch.save({key: state}, tmp_path / release.file)
    with pytest.raises(ValueError, match="lacks the entry"):
        load(name)
