import hashlib

import pytest
import torch
from torch import nn

from common.config import REPOSITORY, read_yaml
from modeling.factory import build_discriminator, build_generator, build_tokenizer
from modeling.layers.trainable import Trainable
from tests.parity import golden_json
from training.optim import build_optimizer, parameter_groups
from training.settings import OptimizerSettings

SIZES = {
    "small": {"hidden_size": 512, "depth": 8, "num_heads": 8},
    "base": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "large": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
}


def titok(encoder, decoder, num_latent_tokens, layout, quantizer):
    section = {"name": "titok", "image_size": 256, "num_latent_tokens": num_latent_tokens, "layout": layout}
    for side, size in (("encoder", encoder), ("decoder", decoder)):
        section |= {f"{side}_patch_size": 16} | {f"{side}_{k}": v for k, v in SIZES[size].items()}
    with torch.device("meta"):
        return build_tokenizer(section | {"quantizer": {"name": "vq", **quantizer}})


RELEASED_VQ = {"codebook_size": 4096, "code_dim": 12, "use_l2_norm": True}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("titok_b64_stage1", lambda: titok("base", "base", 64, "proxy", RELEASED_VQ)),
        ("titok_s128_stage2", lambda: titok("small", "small", 128, "two_stage", RELEASED_VQ)),
        ("titok_s128_stage2_discriminator", lambda: build_discriminator({"name": "nlayer"})),
    ],
)
def test_groups_equal_the_released_recipes(name, make):
    stored = golden_json("optimizer_groups")
    module = make()
    names = {id(p): n for n, p in module.named_parameters()}
    first = stored[name]["groups"][1]
    settings = OptimizerSettings(
        learning_rate=first["lr"],
        beta1=first["betas"][0],
        beta2=first["betas"][1],
        weight_decay=first["weight_decay"],
    )
    groups = build_optimizer(module, settings).param_groups
    for ours, theirs in zip(groups, stored[name]["groups"], strict=True):
        assert len(ours["params"]) == theirs["count"]
        assert {n.removeprefix("discriminator.") for n in theirs["names"]} <= {
            names[id(p)] for p in ours["params"]
        }
        for value in ("lr", "eps", "weight_decay"):
            assert ours[value] == theirs[value]
        assert list(ours["betas"]) == theirs["betas"]


BUILDERS = {"tokenizer": build_tokenizer, "generator": build_generator, "discriminator": build_discriminator}
TOKENS = {"codebook_size": 64, "num_tokens": 16, "num_classes": 10}  # where they come from the tokens


@pytest.mark.parametrize("name", golden_json("muon_groups"))
def test_groups_with_muon_are_those_of_the_golden_file(name):
    """Per group the number of projections stacked in its matrices (0: AdamW), and all names in their order."""
    twin, kind = name.split(".")
    section = dict(read_yaml(REPOSITORY / f"configs/debug/{twin}.yaml")[kind])
    if kind == "generator":
        section = TOKENS | section
    with torch.device("meta"):
        module = BUILDERS[kind](section)
    names = {id(p): n for n, p in module.named_parameters()}
    found = []
    for group in parameter_groups(module, OptimizerSettings(muon_learning_rate=0.02)):
        text = "\n".join(names[id(p)] for p in group["params"])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        found.append([group.get("fused_projections", 0), len(group["params"]), digest])
    assert found == golden_json("muon_groups")[name]


def test_a_model_may_say_itself_what_decays():
    class Model(Trainable):
        def __init__(self):
            super().__init__()
            self.gate, self.embed = nn.Linear(2, 2), nn.Linear(2, 2)

        def decays(self, name, parameter):
            return name != "gate.weight" and super().decays(name, parameter)

    model = Model()
    kept, decayed = (group["params"] for group in parameter_groups(model, OptimizerSettings()))
    assert len(kept) == 4 and decayed == []
