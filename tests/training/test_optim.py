import pytest
import torch

from modeling.factory import build_discriminator, build_tokenizer
from tests.parity import golden_json
from training.optim import build_optimizer
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
