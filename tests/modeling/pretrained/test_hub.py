"""Saved folders load everywhere; uploads go through the Hub's client with what was saved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling.factory import build_generator, build_tokenizer
from modeling.pipeline import load_generator, load_image_model, load_tokenizer
from modeling.pretrained import hub
from modeling.pretrained.hub import from_pretrained, push_to_hub, save_pretrained
from tests.conftest import CLASS_NAMES, GENERATOR, TOKENIZER
from tests.parity import fill_module


@pytest.fixture
def models():
    sizes = {key: GENERATOR[key] for key in ("codebook_size", "num_tokens", "num_classes")}
    section = {key: value for key, value in GENERATOR.items() if key not in sizes}
    return fill_module(build_tokenizer(TOKENIZER)), fill_module(build_generator(section, **sizes))


def test_saved_models_come_back(models, tmp_path):
    tokenizer, generator = models
    save_pretrained(tokenizer, tmp_path / "tokenizer")
    sampling = {"guidance_scale": 2.0, "guidance_power": 1.0, "temperature": 0.5}
    tokens = {"tokenizer": str(tmp_path / "tokenizer"), "class_names": CLASS_NAMES}
    save_pretrained(generator, tmp_path / "generator", sampling=sampling, tokens=tokens)
    assert json.loads((tmp_path / "generator/config.json").read_text())["generator"] == GENERATOR
    assert sorted(p.name for p in (tmp_path / "generator").iterdir()) == ["config.json", "model.safetensors"]
    for load in (load_tokenizer, from_pretrained):
        assert_same(load(tmp_path / "tokenizer"), tokenizer)
    for load in (load_generator, from_pretrained):
        assert_same(load(tmp_path / "generator"), generator)
    model = load_image_model(tmp_path / "generator")
    assert model.sampling == sampling and model.class_names == CLASS_NAMES
    again = {p: p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()}
    save_pretrained(
        load_tokenizer(tmp_path / "tokenizer"), tmp_path / "tokenizer"
    )  # a loaded one knows its section
    assert {p: p.read_bytes() for p in again} == again


def assert_same(module, expected):
    assert type(module) is type(expected) and module.section == expected.section
    assert all(torch.equal(module.state_dict()[k], v) for k, v in expected.state_dict().items())


def test_what_cannot_be_saved_leaves_nothing_behind(models, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Linear does not know its section"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path / "a")
    with pytest.raises(ValueError, match="config.json cannot be written"):
        save_pretrained(models[0], tmp_path / "a", sampling={"x": torch.zeros(1)})
    assert not (tmp_path / "a").exists()
    save_pretrained(models[0], tmp_path / "b")
    before = (tmp_path / "b/model.safetensors").read_bytes()

    def full(state, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr("storage.weights.save_file", full)
    with pytest.raises(OSError, match="full"):
        save_pretrained(models[0], tmp_path / "b")
    assert (tmp_path / "b/model.safetensors").read_bytes() == before
    assert len(list((tmp_path / "b").iterdir())) == 2


def test_section_is_a_copy():
    section = {**TOKENIZER, "quantizer": dict(TOKENIZER["quantizer"])}
    tokenizer = build_tokenizer(section)
    section["quantizer"]["codebook_size"] = 1
    assert tokenizer.section == TOKENIZER


class FakeApi:
    calls: list = []

    def __init__(self, token):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path):
        content = json.loads((Path(folder_path) / "config.json").read_text())
        names = set(load_file(Path(folder_path) / "model.safetensors"))
        self.calls.append(("upload", repo_id, content, names))
        return f"hub/{repo_id}"


def test_push_creates_a_private_repository_and_uploads_the_folder(models, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    assert push_to_hub(models[0], "me/mine", token="secret", note="x") == "hub/me/mine"
    content = {"tokenizer": TOKENIZER, "note": "x"}
    assert FakeApi.calls == [
        ("token", "secret"),
        ("create", "me/mine", True, True),
        ("upload", "me/mine", content, set(models[0].state_dict())),
    ]

    def refuse(self, **options):
        raise OSError("403\nForbidden")

    monkeypatch.setattr(FakeApi, "upload_folder", refuse)
    with pytest.raises(ConnectionError, match="me/mine cannot be uploaded: 403 Forbidden"):
        push_to_hub(models[0], "me/mine")
