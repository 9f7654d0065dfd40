"""What the catalog says about released models agrees with their published layouts and with itself."""

import math

import pytest
import torch

from common.config import REPOSITORY
from modeling.factory import build_generator, build_tokenizer
from modeling.pretrained.catalog import RELEASES, find_release, release_of_section, releases_of_file
from modeling.pretrained.loading import FORMATS, load_image_model
from modeling.pretrained.release import imagenet_classes
from modeling.sampling.draw import settings_type
from storage.weights import read_weights
from tests.parity import assert_layout, manifest

PUBLISHED = [name for name, release in RELEASES.items() if release.section]


def build(release):
    with torch.device("meta"):
        return (build_tokenizer if release.kind == "tokenizer" else build_generator)(release.section)


def file_entries(release):
    """{name: [shape, dtype]} of a release's file; of a generator's, the part that the release needs."""
    tree = manifest(release.manifest)
    if "model" not in tree:
        return tree
    if release.format == "magvit2_first_stage":
        return {f"first_stage_model.{name}": entry for name, entry in tree["model"].items()}
    return {**tree["model"], **tree["training_only"]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sections_build_the_released_layout(name):
    release = RELEASES[name]
    module = build(release)
    if release.format is None:
        assert_layout(module, release.manifest)
    elif release.manifest is not None:  # LlamaGen's largest generators differ from the others in sizes alone
        entries = file_entries(release).items()
        file = {name: torch.empty(shape, device="meta") for name, (shape, _) in entries}
        adapted = FORMATS[release.format](file)
        assert {k: v.shape for k, v in adapted.items()} == {
            k: v.shape for k, v in module.state_dict().items()
        }
    assert sum(t.numel() for t in module.state_dict().values()) == release.parameters
    assert module.num_tokens == release.tokens
    bits = None if module.codebook_size is None else module.num_tokens * math.log2(module.codebook_size)
    assert release.bits_per_image == bits
    if release.repo is None:
        assert release.sources == [] and release.origin
    else:
        assert release.sources[-1] == (release.repo, release.file) and release.origin is None
    shared = (
        RELEASES[name.removesuffix("-384")] if name == "llamagen-vq16-384" else release
    )  # one file, two sizes
    assert shared in releases_of_file(release.file, release.kind)
    others = [other for other in releases_of_file(release.file, release.kind) if other is not shared]
    assert all(release.mark and other.mark and release.mark != other.mark for other in others)
    if release.mark:
        entries = {other.name: manifest(RELEASES[other.name].manifest)["model"] for other in others}
        assert not any(release.mark in names for names in entries.values())
        assert release.kind == "tokenizer" or release.mark in manifest(release.manifest)["model"]
    if release.kind == "tokenizer":  # the first of those with one design
        same = [r for r in RELEASES.values() if r.kind == "tokenizer" and r.section == release.section]
        assert release_of_section(release.section) is same[0] and (same[0] is release or release.format)
    else:
        tokenizer = RELEASES[release.tokenizer]
        assert (tokenizer.tokens, tokenizer.bits_per_image) == (release.tokens, release.bits_per_image)
        settings = settings_type(module)(**release.sampling)
        filters = {k: v for k, v in vars(settings).items() if k in ("top_k", "top_p")}
        assert vars(settings) == filters | release.sampling  # nothing else is left to a default
        assert "top_k" in release.sampling or filters in ({}, {"top_k": 0, "top_p": 1.0})
        assert module.num_classes == len(imagenet_classes()) == len(set(imagenet_classes())) == 1000


def test_there_are_61_names_and_nearest_ones_are_suggested():
    assert len(PUBLISHED) == 58 and len(RELEASES) == 61
    with pytest.raises(ValueError, match="'titok_l32' is unknown.*'titok-l32'"):
        find_release("titok_l32")
    assert releases_of_file("model.safetensors") == [] and release_of_section({"name": "titok"}) is None


def test_class_names_are_in_the_order_of_the_labels():
    names = imagenet_classes()
    known = {
        0: "tench",
        1: "goldfish",
        207: "golden retriever",
        281: "tabby",
        388: "giant panda",
        999: "toilet tissue",
    }
    assert {label: names[label] for label in known} == known
    names.clear()  # callers get copies
    assert len(imagenet_classes()) == 1000


@pytest.mark.parametrize("name", ["openmoji-titok", "openmoji-rar", "openmoji-maskgit"])
def test_shipped_models_are_as_the_catalog_says(name):
    release = RELEASES[name]
    state = read_weights(REPOSITORY / release.folder / "model.safetensors")
    assert sum(t.numel() for t in state.values()) == release.parameters


@pytest.mark.parametrize("name", ["openmoji-rar", "openmoji-maskgit"])
def test_shipped_generator_brings_its_tokenizer(name):
    model = load_image_model(name)
    assert model.generator.num_tokens == RELEASES[name].tokens == model.tokenizer.num_tokens
    assert model.tokenizer.bits_per_image == RELEASES["openmoji-titok"].bits_per_image
    assert "Flags" in model.class_names and model.sampling
