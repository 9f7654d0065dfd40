"""Files with random weights under every published name load by name, by path, and download by themselves.

They have the entries and shapes of the real ones and take a few bytes: a tensor is one number, shown in all its places.
Models of billions of parameters are built without memory; it is asked which number would have gone where.
"""

import io
import random
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from torch import nn

from modeling.factory import build_generator, build_tokenizer
from modeling.pipeline import load_generator, load_tokenizer
from modeling.pretrained import downloads, loading
from modeling.pretrained.catalog import RELEASES, releases_of_file
from modeling.pretrained.model_names import open_model
from tests.data.web_server import serve as serve_files
from tests.modeling.pretrained.hub_stand_in import Hub, serve
from tests.parity import manifest

PUBLISHED = [release for release in RELEASES.values() if release.file]
BUILD = {"tokenizer": build_tokenizer, "generator": build_generator}
LOAD = {"tokenizer": load_tokenizer, "generator": load_generator}
# Where a format has the entries that are called `name` in the model; LlamaGen's VQ has other names altogether.
PLACES = {
    None: lambda name: name,
    "taming": lambda name: name,
    "llamagen_gpt": lambda name: name,
    "magvit2": lambda name: f"model_ema.{name.replace('.', '')}",
    "magvit2_generator": lambda name: f"transformer.{name}",
    "magvit2_first_stage": lambda name: f"first_stage_model.{name}",
}


def without_memory(build, section):
    with torch.device("meta"):
        return build(section)


def entries(release):
    """{name: shape} of a release's entries in its file."""
    if release.manifest is None:  # in sizes alone unlike those that have a list, and under our names
        state = without_memory(BUILD[release.kind], release.section).state_dict()
        tree = {name: list(tensor.shape) for name, tensor in state.items()}
    else:
        listed = manifest(release.manifest)
        tree = {name: shape for name, (shape, _) in listed.get("model", listed).items()}
    if release.format == "magvit2_first_stage":
        return {f"first_stage_model.{name}": shape for name, shape in tree.items()}
    if release.format == "magvit2":
        averages = {f"model_ema.{name.replace('.', '')}": shape for name, shape in tree.items()}
        return {**tree, **averages, "model_ema.decay": [], "loss.lin0.weight": [1, 2]}
    if release.format == "taming":
        return {**tree, "loss.discriminator.main.0.bias": [64]}
    return tree


@pytest.fixture(scope="module")
def content():
    """The bytes of every published file, by repository and name."""
    draws, states = random.Random(0), {}
    for release in PUBLISHED:
        state = states.setdefault((release.repo, release.file), {})
        for name, shape in entries(release).items():
            state.setdefault(name, torch.tensor(draws.random()).expand(shape))
    found = {}
    for key, state in states.items():
        buffer = io.BytesIO()
        torch.save(state if key[1].endswith(".bin") else {"state_dict": state, "epoch": 3}, buffer)
        found[key] = buffer.getvalue()
        assert len(found[key]) < 1 << 20
    return found


@pytest.fixture
def world(content, tmp_path, monkeypatch):
    """All files on the Hub and at the addresses of their authors, and nothing on this machine."""
    monkeypatch.delenv(downloads.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(loading, "_allocate", without_memory)
    hub = Hub()
    hub.files = {key: data for key, data in content.items() if key[0]}
    (tmp_path / "authors").mkdir()
    for (repo, file), data in content.items():
        if repo is None:
            (tmp_path / "authors" / file).write_bytes(data)
    with serve(hub) as address, serve_files(tmp_path / "authors") as (authors, _):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for release in PUBLISHED:
            if release.repo is None:
                assert release.url.startswith("https://")
                here = replace(release, url=f"{authors}/{release.file}?dl=1")
                monkeypatch.setitem(RELEASES, release.name, here)
        yield hub


@pytest.fixture
def loaded(monkeypatch):
    """The state dicts that models were given."""
    states = []
    original = nn.Module.load_state_dict

    def record(module, state, strict=True, assign=False):
        states.append(dict(state))
        return original(module, state, strict=strict, assign=assign)

    monkeypatch.setattr(nn.Module, "load_state_dict", record)
    return states


def first_number(tensor):
    return float(tensor[(0,) * tensor.ndim])


@pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model, which is a no-op")
@pytest.mark.parametrize("name", [release.name for release in PUBLISHED])
def test_every_release_downloads_by_itself_and_loads_by_name_and_path(
    name, world, content, loaded, tmp_path, monkeypatch
):
    release = RELEASES[name]
    module = LOAD[release.kind](name, device="meta")
    assert module.num_tokens == release.tokens
    if release.kind == "generator":
        assert module.sampling == release.sampling
    data = content[release.repo, release.file]
    written = torch.load(io.BytesIO(data), weights_only=True)
    written = {n: first_number(tensor) for n, tensor in written.get("state_dict", written).items()}
    values = {n: first_number(tensor) for n, tensor in loaded[0].items()}
    assert values.keys() == module.state_dict().keys()
    if release.format in PLACES:
        assert values == {n: written[PLACES[release.format](n)] for n in values}
    else:
        assert set(values.values()) <= set(written.values()) and len(set(values.values())) == len(values)
    by_name = open_model(name)
    assert by_name.weights.read_bytes() == data and by_name.format == release.format

    # As a file that somebody has, wherever it lies.
    folder = tmp_path / "mine"
    folder.mkdir()
    mine = folder / release.file
    mine.write_bytes(data)
    asked = len(world.requests)
    first = next(r for r in releases_of_file(release.file, release.kind) if downloads.is_file_of(r, mine))
    for named in (mine, folder):
        by_path = open_model(str(named), release.kind)
        assert by_path.weights == mine and by_path.format == release.format
        assert by_path.section(release.kind) == dict(first.section)
    assert first.name == name or first.section | {"image_size": 384} == release.section  # one file, two sizes
    # In the folder of weights, where files of one name lie in folders of their repositories.
    place = tmp_path / "weights" / (release.repo or "") / release.file
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    monkeypatch.setenv(downloads.WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    assert open_model(name).weights == place
    assert len(world.requests) == asked


def test_every_release_without_a_folder_is_here():
    assert len(PUBLISHED) == 58 == len(RELEASES) - 3
