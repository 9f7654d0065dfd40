"""Every way to name a model leads to the same weights, and every mistake to a message that says what to do."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from common.build import ConfigError
from compat import models as original
from modeling.pipeline import load_generator, load_image_model, load_tokenizer
from modeling.pretrained import downloads
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.model_names import open_model
from modeling.pretrained.release import imagenet_classes
from storage.files import write_yaml
from storage.weights import CheckpointError
from tests.compat.originals import (
    SMALL,
    filled_model,
    small_generator_tree,
    small_tokenizer_tree,
    titok_tree,
    write_weights,
)
from tests.modeling.pretrained.test_catalog import build
from tests.parity import filled

TOKENIZERS = {
    "titok-vq": (small_tokenizer_tree("vq8k"), False),
    "titok-vae": (small_tokenizer_tree("vae"), False),
    "titok-proxy": (small_tokenizer_tree("vq4k"), False),
    "tatitok-vq": (small_tokenizer_tree("vq8k", quantize_mode="vq", clustering_vq=False), True),
    "tatitok-vae": (small_tokenizer_tree("vae"), True),
}
TOKENIZERS["titok-proxy"][0]["model"]["vq_model"]["finetune_decoder"] = False
LAYOUTS = [(name, "tokenizer") for name in TOKENIZERS] + [
    (n, "generator") for n in ("rar", "maskgit", "uvit")
]


@pytest.fixture(autouse=True)
def small_and_offline(monkeypatch, tmp_path):
    monkeypatch.setitem(original.SIZES, "small", SMALL)
    monkeypatch.setitem(original.SIZES, "large", SMALL)
    monkeypatch.delenv(downloads.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(downloads, "try_to_load_from_cache", lambda repo, file: None)
    monkeypatch.setattr(downloads, "cached_download", no_connection)
    monkeypatch.chdir(tmp_path)


def no_connection(repo, file):
    raise LocalEntryNotFoundError("no route")


def refuse(cls):
    """An error of huggingface_hub as the Hub's answers cause it, whatever its constructor wants."""
    error = cls.__new__(cls)
    Exception.__init__(error, "no")

    def download(repo, file):
        raise error

    return download


def example(name, kind):
    if kind == "generator":
        tree = small_generator_tree(name)
        return tree, filled_model(tree, kind)
    tree, text = copy.deepcopy(TOKENIZERS[name])  # tests change it
    return tree, filled_model(tree, kind, text)


def same(module, expected):
    assert type(module) is type(expected) and not module.training
    assert not any(p.requires_grad for p in module.parameters())
    state = module.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), LAYOUTS)
def test_every_layout_loads_from_every_form(name, kind, tmp_path):
    tree, expected = example(name, kind)
    load = load_tokenizer if kind == "tokenizer" else load_generator
    for folder, file in (("hub", "model.safetensors"), ("bin", "pytorch_model.bin")):
        write_weights(tmp_path / folder / file, expected)
        (tmp_path / folder / "config.json").write_text(json.dumps(tree))
        same(load(tmp_path / folder), expected)
        same(load(str(tmp_path / folder / file)), expected)
        assert open_model(tmp_path / folder).kind == kind  # told by the weights
    file = write_weights(tmp_path / "weights" / "any.bin", expected)
    write_yaml(tmp_path / "theirs.yaml", tree)
    same(load(file, config=tmp_path / "theirs.yaml"), expected)
    same(load(file, config=tree), expected)
    same(load(file, config={kind: expected.section}), expected)
    same(load({"weights": str(file), kind: expected.section}), expected)
    tree["experiment"][f"{kind}_checkpoint"] = "weights/any.bin"
    write_yaml(tmp_path / "elsewhere.yaml", tree)
    same(load(tmp_path / "elsewhere.yaml"), expected)
    # Output folders of the original: an unfinished run, averaged weights preferred.
    (tmp_path / "run").mkdir()
    write_yaml(tmp_path / "run" / "config.yaml", tree)
    for step, part, shift in (
        (900, "ema_model", 2.0),
        (1000, "unwrapped_model", 1.0),
        (1000, "ema_model", 0.0),
    ):
        place = tmp_path / "run" / f"checkpoint-{step}" / part / "pytorch_model.bin"
        place.parent.mkdir(parents=True)
        torch.save({k: v + shift for k, v in expected.state_dict().items()}, place)
    same(load(tmp_path / "run"), expected)
    same(load(tmp_path / "run/checkpoint-1000"), expected)


def test_known_surplus_entries_are_dropped_and_no_others(tmp_path):
    for name, kind, surplus in (
        ("maskgit", "generator", {"model.embeddings.position_ids": torch.arange(6)[None]}),
        ("tatitok-vq", "tokenizer", {"quantize.embed_prob": torch.zeros(24)}),
    ):
        tree, expected = example(name, kind)
        load = load_tokenizer if kind == "tokenizer" else load_generator
        same(load(write_weights(tmp_path / "w.bin", expected, **surplus), config=tree), expected)
        other = write_weights(tmp_path / "w.bin", expected, **surplus, more=torch.zeros(1))
        with pytest.raises(CheckpointError, match="holds the entry 'more'"):
            load(other, config=tree)
        missing = expected.state_dict()
        gone = missing.popitem()[0]
        torch.save(missing, tmp_path / "w.bin")
        with pytest.raises(CheckpointError, match=f"lacks the entry '{gone}'"):
            load(tmp_path / "w.bin", config=tree)


def test_a_generator_finds_the_tokenizer_of_its_configuration(tmp_path):
    tree = small_generator_tree("maskgit")
    tokenizer, generator = filled_model(tree, "tokenizer"), filled_model(tree, "generator")
    write_weights(tmp_path / "tok.bin", tokenizer)
    write_weights(tmp_path / "gen.bin", generator)
    tree["experiment"] |= {"tokenizer_checkpoint": "tok.bin", "generator_checkpoint": "gen.bin"}
    (tmp_path / "config").mkdir()
    for place in (
        tmp_path / "both.yaml",
        tmp_path / "config" / "both.yaml",
    ):  # beside it, or from where we work
        write_yaml(place, tree)
        model = load_image_model(place)
        same(model.tokenizer, tokenizer)
        same(model.generator, generator)
    assert model.class_names == imagenet_classes()
    assert model.sampling == original.sampling_section(tree)
    same(load_image_model("gen.bin", config=tree).tokenizer, tokenizer)
    parts = {"weights": "gen.bin", "generator": generator.section, "sampling": {"num_steps": 3}}
    model = load_image_model(parts, {"weights": "tok.bin", "tokenizer": tokenizer.section})
    assert model.sampling == {"num_steps": 3} and model.class_names == imagenet_classes()


@pytest.mark.parametrize("name", [n for n, r in RELEASES.items() if r.kind == "generator" and r.section])
def test_released_generators_name_their_tokenizer(name, tmp_path, monkeypatch):
    release = RELEASES[name]
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path))
    # Nothing is read but names, and those only where they decide which family's file it is.
    torch.save({release.mark: torch.zeros(1)} if release.mark else {}, tmp_path / release.file)
    files = open_model(name)
    assert files.weights == tmp_path / release.file and files.kind == "generator"
    assert files.config["tokens"] == {"tokenizer": release.tokenizer, "class_names": imagenet_classes()}
    assert files.config["sampling"] == release.sampling
    file = str(tmp_path / release.file)
    expected = copy.deepcopy(files.config)
    if RELEASES[release.tokenizer].file == release.file:
        expected["tokens"]["tokenizer"] = file  # not one that may lie elsewhere
        inside = open_model(file, "tokenizer")
        assert inside.config == RELEASES[release.tokenizer].config and str(inside.weights) == file
    assert open_model(file).config == expected  # known by its name


def test_a_folder_with_a_published_file_needs_no_configuration(tmp_path, monkeypatch):
    release = RELEASES["titok-s128"]
    (tmp_path / "w").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "w" / release.file)
    assert open_model(tmp_path / "w").config == release.config
    (tmp_path / "w" / "config.json").write_text('{"_diffusers_version": "0.30"}')  # of something else
    files = open_model(tmp_path / "w")
    assert files.config == release.config and files.weights == tmp_path / "w" / release.file
    (tmp_path / "w" / release.file).rename(tmp_path / "w" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="has neither a section tokenizer nor generator"):
        open_model(tmp_path / "w")


def test_sections_that_are_not_read_may_name_variables_of_another_machine(tmp_path):
    tree, _ = TOKENIZERS["titok-vq"]
    write_yaml(
        tmp_path / "config.yaml", {**tree, "dataset": {"params": {"path": "${oc.env:NOT_SET_HERE}/x"}}}
    )
    torch.save({"encoder.a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert open_model(tmp_path).kind == "tokenizer"
    tree = {
        **tree,
        "model": {
            **tree["model"],
            "vq_model": {**tree["model"]["vq_model"], "token_size": "${oc.env:NOT_SET_HERE}"},
        },
    }
    write_yaml(tmp_path / "config.yaml", tree)
    with pytest.raises(ConfigError, match="NOT_SET_HERE"):
        open_model(tmp_path)


def test_original_generator_folder_leads_to_the_released_tokenizer(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    tree = titok_tree("l", 32, "vq4k")
    tree["model"]["generator"] = small_generator_tree("maskgit")["model"]["generator"]
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert open_model(tmp_path).config["tokens"]["tokenizer"] == "titok-l32"


def test_weights_are_looked_up_in_the_folder_then_the_cache_then_the_hub(tmp_path, monkeypatch):
    release = RELEASES["titok-l32"]
    calls = []

    def download(repo, file):
        calls.append((repo, file))
        return str(tmp_path / "downloaded")

    monkeypatch.setattr(downloads, "cached_download", download)
    assert open_model("titok-l32").weights == tmp_path / "downloaded"
    assert calls == [(release.hub_repo, "model.safetensors")]
    monkeypatch.setattr(
        downloads, "try_to_load_from_cache", lambda repo, file: "cached" if repo == release.repo else None
    )
    assert str(open_model("titok-l32").weights) == "cached" and len(calls) == 1
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    with pytest.raises(FileNotFoundError, match="TITOK_WEIGHTS=.* is not a folder"):
        open_model("titok-l32")
    (tmp_path / "weights").mkdir()
    assert str(open_model("titok-l32").weights) == "cached"
    for place in (
        "titok-l32/model.safetensors",
        f"{release.hub_repo}/model.safetensors",
        f"{release.repo}/{release.file}",
    ):
        found = tmp_path / "weights" / place
        found.parent.mkdir(parents=True, exist_ok=True)
        found.touch()
        assert open_model("titok-l32").weights == found
        found.unlink()


def test_offline_says_what_to_get_and_where_to_put_it(monkeypatch):
    with pytest.raises(ConnectionError) as error:
        load_tokenizer("titok-s128")
    for part in (
        "resolve/main/tokenizer_titok_s128.bin",
        "fun-research/TiTok",
        "TITOK_WEIGHTS",
        "Hub cannot be reached",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(
        ConnectionError, match="no file or folder here, and as a Hub repository: some/model/config"
    ):
        load_tokenizer("some/model")
    monkeypatch.setattr(downloads, "cached_download", refuse(RepositoryNotFoundError))
    with pytest.raises(FileNotFoundError, match="the Hub has no repository some/model"):
        load_tokenizer("some/model")
    with pytest.raises(ConnectionError, match="weights of rar-b .* yucornetto/RAR"):
        load_generator("rar-b")
    monkeypatch.setattr(downloads, "cached_download", refuse(EntryNotFoundError))
    with pytest.raises(FileNotFoundError, match="some/model has no file config.json"):
        load_tokenizer("some/model")


def test_a_hub_repository_may_be_ours_or_of_the_original(tmp_path, monkeypatch):
    tree, expected = example("titok-vq", "tokenizer")
    write_weights(tmp_path / "theirs/model.safetensors", expected)
    (tmp_path / "theirs/config.json").write_text(json.dumps(tree))
    write_weights(tmp_path / "ours/pytorch_model.bin", expected)
    (tmp_path / "ours/config.json").write_text(json.dumps({"tokenizer": expected.section}))

    def download(repo, file):
        path = tmp_path / repo.split("/")[1] / file
        return str(path) if path.is_file() else refuse(EntryNotFoundError)(repo, file)

    monkeypatch.setattr(downloads, "cached_download", download)
    same(load_tokenizer("people/theirs"), expected)
    same(load_tokenizer("people/ours"), expected)
    # A local folder of that name comes first.
    shutil.copytree(tmp_path / "ours", tmp_path / "people/theirs")
    (tmp_path / "people/theirs/pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="people/theirs holds no weights"):
        load_tokenizer("people/theirs")
    with pytest.raises(FileNotFoundError, match="people/others does not exist"):
        load_tokenizer("people/others")  # not asked for on the Hub: people is a folder here


def test_names_of_the_catalog_come_before_folders(tmp_path):
    (tmp_path / "openmoji-titok").mkdir()
    assert load_tokenizer("openmoji-titok").image_size == 48


def test_wrong_references_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="titok-l23 does not exist.*did you mean 'titok-l32'"):
        load_tokenizer("titok-l23")
    with pytest.raises(FileNotFoundError, match="runs/nowhere does not exist"):
        load_tokenizer("runs/nowhere")
    with pytest.raises(ValueError, match="rar-b is a generator, not a tokenizer"):
        load_tokenizer("rar-b")
    (tmp_path / "rar_b.bin").touch()
    with pytest.raises(ValueError, match="file of a generator .rar-b., not of a tokenizer"):
        load_tokenizer("rar_b.bin")
    with pytest.raises(FileNotFoundError, match=r"config.yaml, which describes the model, does not exist"):
        (tmp_path / "unknown.bin").touch()
        load_tokenizer("unknown.bin")
    with pytest.raises(ConfigError, match="needs `weights`.*found tokenizer"):
        load_tokenizer({"tokenizer": {}})
    with pytest.raises(FileNotFoundError, match=r"weight file lost\.bin does not exist"):
        load_tokenizer({"weights": "lost.bin", "tokenizer": {"name": "titok"}})
    with pytest.raises(FileNotFoundError, match="not a local file or folder"):
        load_tokenizer("titok-l32", config={"tokenizer": {}})
    tree, expected = example("titok-vq", "tokenizer")
    write_yaml(tmp_path / "no_weights.yaml", tree)
    with pytest.raises(ConfigError, match=r"experiment\.tokenizer_checkpoint is missing"):
        load_tokenizer("no_weights.yaml")
    write_weights(tmp_path / "f" / "model.safetensors", expected)
    for text, message in (
        ("{", "not JSON"),
        ("[1]", "must hold keys and values"),
        ('{"encoder": {}}', "neither a section tokenizer nor generator, nor model.vq_model"),
        (json.dumps({"generator": {"name": "rar"}}), "not the folder of a tokenizer: it holds a generator"),
    ):
        (tmp_path / "f" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path / "f")


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("write", [lambda p: torch.save({"w": Malicious()}, p), None])
def test_code_in_a_weight_file_is_refused_and_does_not_run(write, tmp_path):
    file = tmp_path / "tokenizer_titok_s128.bin"
    if write is None:
        file.write_bytes(pickle.dumps({"w": Malicious()}, protocol=2))
    else:
        write(file)
    with pytest.raises(CheckpointError, match="tokenizer_titok_s128.bin is damaged or of another format"):
        load_tokenizer(file)
    with pytest.raises(CheckpointError, match="is damaged or of another format"):
        load_tokenizer(file, config=titok_tree("s", 128, "vq4k"))
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Malicious())).close()  # it would have run
    assert (tmp_path / "executed").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["titok-s128", "maskgit-vqgan"])
def test_released_size_loads_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    release = RELEASES[name]
    expected = filled(lambda: build(release))
    torch.save(expected.state_dict(), tmp_path / release.file)
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path))
    loaded = load_tokenizer(name)
    state = loaded.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.state_dict().items())


@pytest.mark.parametrize("name", ["org/..", "org/."])
def test_a_name_with_dots_for_a_repository_is_not_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr("modeling.pretrained.model_names.hub_model", None)
    with pytest.raises(FileNotFoundError, match="does not exist as file, folder or released model"):
        open_model(name)
