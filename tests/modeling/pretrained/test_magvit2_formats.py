"""Training files of Open-MAGVIT2 and IBQ: which weights they mean, and every way to name them."""

import random
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from common.build import ConfigError
from modeling.factory import build_generator, build_tokenizer
from modeling.pipeline import generate, load_generator, load_image_model, load_tokenizer, save_pretrained
from modeling.pretrained import catalog, downloads
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.magvit2_formats import (
    from_magvit2_first_stage,
    from_magvit2_generator,
    from_magvit2_tokenizer,
)
from storage.files import write_yaml
from storage.weights import CheckpointError
from tests.modeling.pretrained.test_catalog import file_entries
from tests.parity import fill_module

SHAPE = {"image_size": 16, "base_channels": 32, "multipliers": [1, 2, 2], "num_blocks": 1}
MAGVIT2 = {"name": "magvit2", **SHAPE, "quantizer": {"name": "lfq", "bits": 6}}
IBQ = {
    "name": "vqgan",
    **SHAPE,
    "z_channels": 16,
    "quantizer": {"name": "ibq", "codebook_size": 64, "code_dim": 16},
}
TOKENIZERS = {"magvit2": MAGVIT2, "ibq": IBQ}
SIZES = {
    "codebook_size": 64,
    "num_tokens": 16,
    "num_classes": 1000,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_size": 64,
}
GENERATORS = {
    "magvit2": {"name": "factorized_ar", **SIZES, "factors": [4, 16], "intra_depth": 1},
    "ibq": {"name": "ibq_ar", **SIZES},
}
State = Mapping[str, torch.Tensor]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: str) -> None:
        return None

    def unreachable(*_: str) -> str:
        raise OSError("no connection")

    monkeypatch.delenv(downloads.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(downloads, "try_to_load_from_cache", absent)
    monkeypatch.setattr(downloads, "cached_download", unreachable)


def model_of(section: dict, build: Callable[[dict], nn.Module] = build_tokenizer) -> nn.Module:
    return fill_module(build(section))


def tokenizer_file(raw: State, averaged: State | None) -> dict[str, torch.Tensor]:
    """The state dict that the authors' trainer writes, in no particular order."""
    state = {
        **raw,
        "loss.discriminator.main.0.weight": torch.ones(2),
        "loss.perceptual_loss.lin0": torch.ones(1),
    }
    if averaged is not None:
        state |= {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in averaged.items()}
        state["model_ema.lossdiscriminatormain0weight"] = torch.ones(2)
        state["model_ema.decay"] = torch.tensor(0.999)
        state["model_ema.num_updates"] = torch.tensor(-1, dtype=torch.int32)
    names = sorted(state)
    random.Random(0).shuffle(names)
    return {name: state[name] for name in names}


def generator_file(generator: State, tokenizer: State) -> dict[str, torch.Tensor]:
    parts = {"transformer.": generator, "first_stage_model.": tokenizer}
    return {f"{prefix}{name}": tensor for prefix, state in parts.items() for name, tensor in state.items()}


@pytest.fixture
def save(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, State], Path]:
    """Writes a training file with objects of a library that is gone when it is read."""

    def write(path: Path, state: State) -> Path:
        module = types.ModuleType("lightning_of_old")
        for name, base in (("ModelCheckpoint", object), ("AttributeDict", dict)):
            setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        content = {
            "epoch": 7,
            "pytorch-lightning_version": "2.2.0",
            "callbacks": {module.ModelCheckpoint: module.ModelCheckpoint()},
            "hyper_parameters": module.AttributeDict(lr=1.0),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
            "state_dict": dict(state),
        }
        torch.save(content, path)
        monkeypatch.delitem(sys.modules, module.__name__)
        return path

    return write


def same(model: nn.Module, expected: State) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def shifted(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_file_of_a_tokenizer_gives_averaged_weights_if_it_has_any(family, save, tmp_path) -> None:
    section = TOKENIZERS[family]
    raw = model_of(section).state_dict()
    config = {"tokenizer": section, "format": "magvit2"}
    both = save(tmp_path / "both.ckpt", tokenizer_file(raw, shifted(raw)))
    same(load_tokenizer(both, config=config), shifted(raw))
    same(load_tokenizer({"weights": str(both), **config}), shifted(raw))
    write_yaml(tmp_path / "config.yaml", config)
    same(load_tokenizer(both), shifted(raw))
    same(load_tokenizer(save(tmp_path / "raw.ckpt", tokenizer_file(raw, None)), config=config), raw)


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_file_of_a_generator_holds_its_tokenizer_as_well(family, save, tmp_path) -> None:
    sections = {"generator": GENERATORS[family]}
    generator = model_of(GENERATORS[family], build_generator).state_dict()
    tokenizer = model_of(TOKENIZERS[family]).state_dict()
    path = save(tmp_path / "last.ckpt", generator_file(generator, tokenizer))
    first_stage = {"weights": str(path), "format": "magvit2_first_stage", "tokenizer": TOKENIZERS[family]}
    config = {**sections, "format": "magvit2_generator", "tokens": {"tokenizer": first_stage}}
    same(load_generator(path, config=config), generator)
    same(load_tokenizer(first_stage), tokenizer)
    model = load_image_model(path, config=config)
    same(model.generator, generator)
    same(model.tokenizer, tokenizer)


@pytest.fixture
def small_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generators of size b and their tokenizers, as named and published but with fewer parameters."""
    for family, tokenizer in TOKENIZERS.items():
        for name, section in (
            (f"{family}-ar-b", GENERATORS[family]),
            (f"{family}-ar-b-tokenizer", tokenizer),
        ):
            monkeypatch.setitem(RELEASES, name, replace(RELEASES[name], section=section))
    monkeypatch.setattr(catalog, "_ALL", tuple(RELEASES.values()))


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_published_generator_brings_the_tokenizer_of_its_own_file(
    family, save, small_releases, tmp_path, monkeypatch
) -> None:
    name = f"{family}-ar-b"
    generator = model_of(GENERATORS[family], build_generator).state_dict()
    tokenizer = model_of(TOKENIZERS[family]).state_dict()
    path = save(tmp_path / RELEASES[name].file, generator_file(generator, tokenizer))
    with pytest.raises(OSError, match=f"https://huggingface.co/TencentARC/.*-AR-B.*/main/{path.name} "):
        load_tokenizer(f"{name}-tokenizer")
    by_path = load_image_model(path)  # the names alone lead nowhere here
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path))
    same(load_tokenizer(path), tokenizer)
    same(load_tokenizer(f"{name}-tokenizer"), tokenizer)
    for model in (by_path, load_image_model(name)):
        same(model.generator, generator)
        same(model.tokenizer, tokenizer)
        assert model.sampling == RELEASES[name].sampling and model.class_names[1] == "goldfish"
    images = generate(model.generator, model.tokenizer, torch.tensor([1, 2]), **model.sampling)
    assert images.shape == (2, 3, 16, 16)

    # A converted model lies in a folder of its name, with our entries.
    folder = tmp_path / "converted"
    for part, kept in ((model.generator, name), (model.tokenizer, f"{name}-tokenizer")):
        save_pretrained(part, folder / kept)
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(folder))
    again = load_image_model(name)
    same(again.generator, generator)
    same(again.tokenizer, tokenizer)


def test_files_of_one_name_are_told_apart_by_their_entries(
    save, small_releases, tmp_path, monkeypatch
) -> None:
    states = {
        family: model_of(section, build_generator).state_dict() for family, section in GENERATORS.items()
    }
    files = {f: RELEASES[f"{f}-ar-b"] for f in GENERATORS}
    assert files["magvit2"].file == files["ibq"].file and files["magvit2"].repo != files["ibq"].repo
    other = {"magvit2": "ibq", "ibq": "magvit2"}
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path))
    for family, state in states.items():
        first_stage = model_of(TOKENIZERS[family]).state_dict()
        path = save(tmp_path / files[family].file, generator_file(state, first_stage))
        same(load_generator(path), state)
        same(load_generator(f"{family}-ar-b"), state)
        with pytest.raises(
            OSError, match="cannot be downloaded"
        ):  # the other family's file is not taken for it
            load_generator(f"{other[family]}-ar-b")
        path.unlink()
        repository = tmp_path / "later" / files[family].repo.split("/")[1]
        repository.mkdir(parents=True)
        save(repository / path.name, generator_file(state, first_stage))
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path / "later"))
    for family, state in states.items():  # each in a folder called like its repository
        same(load_generator(f"{family}-ar-b"), state)
    strange = save(tmp_path / files["ibq"].file, generator_file({"norm.weight": torch.zeros(2)}, {}))
    with pytest.raises(
        ValueError, match="name of a published file, but holds neither magvit2-ar-b nor ibq-ar-b"
    ):
        load_generator(strange)


def test_averages_are_found_by_name_and_all_are_needed() -> None:
    raw = {"encoder.down.0.block.1.norm1.weight": torch.zeros(1), "quantize.embedding.weight": torch.zeros(2)}
    averaged = tokenizer_file(raw, shifted(raw))
    found = from_magvit2_tokenizer(averaged)
    assert found.keys() == raw.keys() and all(bool((t == 1).all()) for t in found.values())
    lost = {name: t for name, t in averaged.items() if name != "model_ema.quantizeembeddingweight"}
    with pytest.raises(
        ValueError, match="lacks the entry 'model_ema.quantizeembeddingweight' for 'quantize.emb"
    ):
        from_magvit2_tokenizer(lost)
    with pytest.raises(ValueError, match="'model_ema.strange', an average of no weight"):
        from_magvit2_tokenizer({**averaged, "model_ema.strange": torch.zeros(1)})
    with pytest.raises(ValueError, match="lacks the entry 'model_ema.strange' for 'strange'"):
        from_magvit2_tokenizer({**averaged, "strange": torch.zeros(1)})
    assert from_magvit2_tokenizer(tokenizer_file(raw, None)).keys() == raw.keys()


def test_parts_of_a_generator_file_are_told_apart_and_strangers_stay() -> None:
    file = {"transformer.head.weight": 1, "first_stage_model.encoder.x": 2, "other.x": 3}
    assert from_magvit2_generator(file) == {"head.weight": 1, "other.x": 3}
    assert from_magvit2_first_stage(file) == {"encoder.x": 2, "other.x": 3}


def test_files_that_do_not_fit_are_named(save, tmp_path) -> None:
    raw = model_of(MAGVIT2).state_dict()
    config = {"tokenizer": MAGVIT2, "format": "magvit2"}
    state = tokenizer_file(raw, shifted(raw))
    del state["model_ema.decoderconv_outbias"]
    path = save(tmp_path / "a.ckpt", state)
    with pytest.raises(CheckpointError, match=r"a.ckpt: the file averages weights, but lacks .*conv_outbias"):
        load_tokenizer(path, config=config)
    with pytest.raises(
        CheckpointError, match="'loss.discriminator.main.0.weight', which the configured model lacks"
    ):
        load_tokenizer(path, config={**config, "format": "magvit2_first_stage"})
    for unknown in ("magvit3", ["magvit2"]):
        with pytest.raises(ConfigError, match="format=.*magvit.* is unknown; choose .*magvit2_first_stage"):
            load_tokenizer(path, config={**config, "format": unknown})
    with pytest.raises(CheckpointError):  # a training file is no plain weight file
        load_tokenizer(path, config={"tokenizer": MAGVIT2})
    without = save(tmp_path / "b.ckpt", {k: v for k, v in raw.items() if k != "decoder.conv_in.bias"})
    with pytest.raises(CheckpointError, match=r"b.ckpt lacks the entry 'decoder.conv_in.bias'"):
        load_tokenizer(without, config=config)


def spread(value: float, shape: list[int]) -> torch.Tensor:
    """A tensor that is one number in memory and in a file."""
    return torch.tensor(value).expand(shape)


@pytest.mark.parametrize("name", ["magvit2-256", "ibq-16384"])
def test_released_tokenizers_load_in_full_size_by_name(name, save, tmp_path, monkeypatch) -> None:
    release = RELEASES[name]
    entries = file_entries(release).items()
    state = {k: spread(0.02 if k.startswith("model_ema.") else 0.01, shape) for k, (shape, _) in entries}
    save(tmp_path / release.file, state)
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path))
    model = load_tokenizer(name)
    values = model.state_dict().values()
    assert sum(t.numel() for t in values) == release.parameters
    assert all(bool((t == 0.02).all()) for t in values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["magvit2-ar-b", "ibq-ar-b"])
def test_released_generators_load_in_full_size_by_name(name, save, tmp_path, monkeypatch) -> None:
    state = {}
    for value, part in ((0.01, name), (0.03, f"{name}-tokenizer")):
        state |= {k: spread(value, shape) for k, (shape, _) in file_entries(RELEASES[part]).items()}
    save(tmp_path / RELEASES[name].file, state)
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path))
    model = load_image_model(name)
    for module, part, value in ((model.generator, name, 0.01), (model.tokenizer, f"{name}-tokenizer", 0.03)):
        values = module.state_dict().values()
        assert sum(t.numel() for t in values) == RELEASES[part].parameters
        assert all(bool((t == value).all()) for t in values)
