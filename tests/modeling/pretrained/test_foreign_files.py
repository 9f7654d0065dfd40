"""Training files of taming and LlamaGen, in their layouts and full sizes, through the front door."""

import dataclasses

import pytest
import torch

from common.build import ConfigError
from modeling.factory import build_tokenizer
from modeling.pipeline import from_pretrained, load_generator, load_tokenizer, save_pretrained
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.run_folder import RUN_KEYS
from storage.files import write_yaml
from tests.conftest import TOKENIZER
from tests.parity import manifest
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun


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


def test_unknown_keys_beside_a_section_are_refused_by_name(tmp_path):
    tokenizer = build_tokenizer(TOKENIZER)
    weights = save_pretrained(tokenizer, tmp_path / "any", note="JSON may say more") / "model.safetensors"
    assert from_pretrained(tmp_path / "any").section == TOKENIZER
    (tmp_path / "any" / "config.json").unlink()
    for key, hint in (("layout", "; options: .*, format"), ("fromat", " .did you mean 'format'")):
        config = {"tokenizer": TOKENIZER, key: "beit_vqkd"}
        refused = f"{key} is not an option{hint}"
        write_yaml(tmp_path / "given.yaml", config)
        for given in (config, tmp_path / "given.yaml"):
            with pytest.raises(ConfigError, match=refused):
                load_tokenizer(weights, config=given)
        with pytest.raises(ConfigError, match=refused):
            load_tokenizer({"weights": str(weights), **config})
        write_yaml(tmp_path / "any" / "config.yaml", config)
        for name in (weights, tmp_path / "any", tmp_path / "any" / "config.yaml"):
            with pytest.raises(ConfigError, match=f"config.yaml.*{refused}"):
                load_tokenizer(name)


def test_the_keys_beside_weights_are_those_of_runs():
    fields = {field.name for run in (TokenizerRun, GeneratorRun) for field in dataclasses.fields(run)}
    assert set(RUN_KEYS) == fields
