"""The original's configurations become sections of ours, or an error that names the key."""

import copy

import pytest

from common.build import ConfigError
from compat.models import (
    generator_section,
    has_generator,
    is_original,
    is_text_aware,
    sampling_section,
    tokenizer_section,
    weight_file,
)
from modeling.pretrained.catalog import RELEASES
from tests.compat.originals import TREES, rar_tree, titok_tree


@pytest.mark.parametrize("name", TREES)
def test_published_configurations_are_those_of_the_catalog(name):
    tree, release = TREES[name], RELEASES[name]
    before = copy.deepcopy(tree)
    assert is_original(tree)
    if release.kind == "tokenizer":
        assert tokenizer_section(tree, text=name.startswith("tatitok")) == release.section
        assert not has_generator(tree) and sampling_section(tree) == {}
    else:
        assert generator_section(tree) == release.section
        assert sampling_section(tree) == release.sampling
        assert tokenizer_section(tree) == RELEASES[release.tokenizer].section
    assert tree == before


def test_what_is_not_of_the_original():
    assert not is_original({"tokenizer": {"name": "titok"}, "model": None})
    assert not is_original({"model": {"vq_model": None}}) and not is_original([1])


def test_old_files_mean_the_defaults_that_they_leave_out():
    tree = TREES["maskgit-titok-s128"]
    section = copy.deepcopy(tree)["model"]["vq_model"]
    for key in ("finetune_decoder", "commitment_cost"):
        del section[key]
    assert tokenizer_section({"model": {"vq_model": section}}) == RELEASES["titok-s128"].section


@pytest.mark.parametrize(
    ("flags", "layout"),
    [({}, "two_stage"), ({"finetune_decoder": False}, "proxy"), ({"finetune_decoder": True}, "two_stage")],
)
def test_layout_follows_the_flags(flags, layout):
    tree = titok_tree("s", 128, "vq4k")
    del tree["model"]["vq_model"]["finetune_decoder"]
    tree["model"]["vq_model"] |= flags
    assert tokenizer_section(tree)["layout"] == layout


def test_text_shows_in_training_files_and_text_keys_alone():
    tree = titok_tree("bl", 64, "vq8k", clustering_vq=True)
    assert not is_text_aware(tree)
    # TiTok does not read clustering_vq, TA-TiTok does.
    assert tokenizer_section(tree)["quantizer"]["online_clustering"] is False
    tree["dataset"]["params"] = {"dataset_with_text_label": True}
    section = tokenizer_section(tree)
    assert section["name"] == "tatitok" and section["quantizer"]["online_clustering"] is True
    assert tokenizer_section(tree, text=False)["name"] == "titok"
    keys = tokenizer_section(titok_tree("bl", 64, "vae", text_context_length=9, text_embed_dim=10))
    assert (keys["name"], keys["text_length"], keys["text_width"]) == ("tatitok", 9, 10)


def changed(name, place, **keys):
    tree = copy.deepcopy(TREES[name])
    section = tree["model"][place]
    for key, value in keys.items():
        section[key] = value
        if value is None:
            del section[key]
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            changed("titok-bl64-vae", "vq_model", tokensize=3),
            r"vq_model\.tokensize .*did you mean 'token_size'",
        ),
        (
            changed("rar-b", "generator", guidance_pow=1),
            r"generator\.guidance_pow .*mean 'guidance_scale_pow'",
        ),
        (changed("titok-bl64-vae", "vq_model", token_size=None), r"vq_model\.token_size is missing"),
        (
            changed("titok-bl64-vae", "vq_model", token_size="16"),
            r"vq_model\.token_size='16' has the wrong type",
        ),
        (changed("titok-bl64-vae", "vq_model", quantize_mode="vea"), r"quantize_mode='vea' .* 'vae'"),
        (changed("titok-bl64-vae", "vq_model", vit_enc_model_size="huge"), "small, base, large"),
        (
            changed("titok-bl64-vae", "vq_model", finetune_decoder=True),
            "is_legacy=false needs finetune_decoder=false",
        ),
        (
            changed("titok-bl64-vae", "vq_model", finetune_decoder=True, is_legacy=True),
            "'vae' needs finetune",
        ),
        (changed("rar-b", "vq_model", codebook_size=4096), "is MaskGIT's VQGAN .* has codebook_size 4096"),
        (changed("rar-b", "generator", hidden_size=None), r"generator\.hidden_size is missing"),
        (changed("maskgit-titok-l32", "generator", model_type="BERT"), "one of ViT, UViT"),
        (changed("maskgit-titok-l32", "generator", model_type=None), "model.generator is of no known kind"),
        (changed("maskgit-titok-l32", "generator", guidance_decay="power"), "guidance_decay='power'"),
        (
            changed("maskgit-titok-l32", "generator", image_seq_len="${model.nowhere}"),
            "section model .*nowhere",
        ),
        ({"model": {"maskgen": {}, "vq_model": {}}}, "text-to-image"),
    ],
)
def test_wrong_keys_and_values_are_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer_section(tree) if "maskgen" not in tree["model"] else None
        generator_section(tree)
        sampling_section(tree)


def test_text_needs_the_single_stage_layout():
    with pytest.raises(ConfigError, match="TA-TiTok needs finetune_decoder=false .*layout two_stage"):
        tokenizer_section(titok_tree("s", 128, "vq4k"), text=True)


def test_other_sections_may_refer_to_what_does_not_exist():
    tree = rar_tree((768, 24, 3072), (16.0, 2.75, 1.0)) | {"losses": {"weight": "${nowhere.at.all}"}}
    assert generator_section(tree) == RELEASES["rar-b"].section


def test_weight_files_are_found_under_their_keys():
    tree = TREES["maskgit-titok-l32"]
    assert weight_file(tree, "tokenizer") == "tokenizer_titok_l32.bin"
    assert weight_file(tree, "generator") == "generator_titok_l32.bin"
    assert weight_file(TREES["rar-b"], "tokenizer") == "maskgit-vqgan-imagenet-f16-256.bin"
    assert weight_file(TREES["rar-b"], "generator") is None
    stage = titok_tree("s", 128, "vq4k", pretrained_tokenizer_weight="vqgan.bin")  # its teacher, not itself
    assert weight_file(stage, "tokenizer") is None
