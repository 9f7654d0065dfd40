"""Sampling tokens in sub-tokens, each with settings of its own."""

import numpy as np
import pytest
import torch

from common.build import ConfigError, build_dataclass
from modeling.generators import GPT, FactorizedAR
from modeling.sampling.autoregressive import sample
from modeling.sampling.draw import draw, numbers_needed
from modeling.sampling.filtering import filter_logits
from modeling.sampling.guidance import guide
from modeling.sampling.noise import sample_uniforms
from modeling.sampling.settings import MaskedSamplingSettings, SamplingSettings
from modeling.token_factors import TokenFactors
from tests.modeling.generators.test_factorized_ar import THREE, TINY
from tests.modeling.generators.test_gpt import TINY as GPT_TINY
from tests.parity import assert_close, filled, golden

LABELS = torch.tensor([4, 9, 4, 0])
MIXED = {"guidance_scale": [1.0, 3.0], "guidance_power": 2.0, "temperature": [0.7, 1.2]}
MIXED |= {"top_k": [0, 4], "top_p": [0.8, 1.0]}


@pytest.fixture(scope="module")
def model() -> FactorizedAR:
    return filled(lambda: FactorizedAR(**TINY, dropout=0.5))


def uniforms(count: int = 32, rows: int = 4) -> torch.Tensor:
    return sample_uniforms(0, range(rows), count)


def naive(
    model: FactorizedAR, labels: torch.Tensor, numbers: torch.Tensor | None, settings: dict
) -> torch.Tensor:
    """The sampler written with nothing but the forward pass; all settings are lists."""
    split, count = TokenFactors(model.factors), model.num_tokens
    tokens = torch.zeros(len(labels), count, dtype=torch.long)
    for step in range(count):
        for g in range(len(model.factors)):
            with torch.no_grad():
                conditional, unconditional = (
                    model(tokens, y)[g][:, step].double()
                    for y in (labels, torch.full_like(labels, model.none_label))
                )
            scale, power = settings["guidance_scale"][g], settings["guidance_power"]
            if scale not in (0, 1):
                weight = 1 + (scale - 1) / 2 * (1 - np.cos(np.pi * (step / count) ** power))
                conditional = unconditional + weight * (conditional - unconditional)
            digits = split.split(tokens)
            if settings["temperature"][g] == 0:
                digits[:, step, g] = conditional.argmax(-1)
            else:
                logits = filter_logits(
                    conditional / settings["temperature"][g], settings["top_k"][g], settings["top_p"][g]
                )
                below = logits.softmax(-1).cumsum(-1) <= numbers[:, step * len(model.factors) + g, None]
                digits[:, step, g] = below.sum(-1)
            tokens = split.join(digits)
    return tokens


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"guidance_scale": [3.0, 1.0]},
        {"guidance_scale": [2.0, 0.0]},
        {"guidance_scale": [1.0, 1.0]},
        {"guidance_scale": [1.9, 2.0], "guidance_power": 0.0},
        {"temperature": [0.0, 1.0]},
        {"temperature": [1.0, 0.0]},
    ],
)
def test_sampling_equals_naive_full_forwards(model, change):
    settings = MIXED | change
    assert torch.equal(
        sample(model, LABELS, **settings, uniforms=uniforms()), naive(model, LABELS, uniforms(), settings)
    )


def test_three_sub_tokens_equal_naive_full_forwards():
    model = filled(lambda: FactorizedAR(**THREE))
    settings = {"guidance_scale": [2.0, 1.0, 3.0], "guidance_power": 1.0, "temperature": [1.0, 0.0, 0.8]}
    settings |= {"top_k": [0, 0, 3], "top_p": [0.9, 1.0, 1.0]}
    numbers = uniforms(48)
    tokens = sample(model, LABELS, **settings, uniforms=numbers)
    assert torch.equal(tokens, naive(model, LABELS, numbers, settings))
    assert tokens.unique().numel() > 20 and tokens.max() < 60


def test_a_number_is_meant_for_every_sub_token(model):
    numbers = {"guidance_scale": 2.5, "temperature": 0.9, "top_k": 5, "top_p": 0.95}
    single = sample(model, LABELS, **numbers, guidance_power=1.0, uniforms=uniforms())
    lists = {key: [value, value] for key, value in numbers.items()}
    assert torch.equal(sample(model, LABELS, **lists, guidance_power=1.0, uniforms=uniforms()), single)


def test_greedy_needs_no_numbers(model):
    settings = MIXED | {"temperature": 0.0, "guidance_scale": [2.0, 3.0]}
    tokens = sample(model, LABELS, **settings)
    assert torch.equal(tokens[0], tokens[2])
    assert torch.equal(tokens, naive(model, LABELS, None, settings | {"temperature": [0, 0]}))


@pytest.mark.parametrize("scale", [1.0, 3.0, [1.0, 3.0]])
def test_a_sample_does_not_depend_on_its_batch(model, scale):
    labels, settings = torch.arange(8) % 5, SamplingSettings(**MIXED | {"guidance_scale": scale})
    together = draw(model, labels, sample_uniforms(3, range(8), 32), settings)
    apart = [draw(model, labels[i], sample_uniforms(3, i, 32), settings) for i in torch.arange(8).split(3)]
    assert torch.equal(torch.cat(apart), together)
    assert together.unique(dim=0).shape[0] == 8


def test_numbers_needed(model):
    assert numbers_needed(model, SamplingSettings()) == 32
    assert numbers_needed(model, SamplingSettings(temperature=[0, 1])) == 32
    assert numbers_needed(model, SamplingSettings(temperature=[0, 0])) == 0
    assert numbers_needed(model, SamplingSettings(temperature=0)) == 0


def test_weights_in_bfloat16():
    model = filled(lambda: FactorizedAR(**TINY)).bfloat16()
    tokens = sample(model, LABELS, **MIXED, uniforms=uniforms())
    assert tokens.shape == (4, 16) and tokens.min() >= 0 and tokens.max() < 24


def test_progress_counts_tokens(model):
    seen = []
    sample(model, LABELS, **MIXED | {"temperature": 0}, progress=lambda *step: seen.append(step))
    assert seen == [(step, 16) for step in range(1, 17)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": [1.0]}, r"temperature=\[1.0\] has 1 numbers, but tokens have G=2 sub-tokens"),
        ({"top_k": [1, 2, 3]}, r"top_k=\[1, 2, 3\] has 3 numbers, but tokens have G=2"),
        ({"guidance_scale": [1.0, -1.0]}, "guidance_scale=-1.0"),
        ({"temperature": [1.0, -1.0]}, "temperature=-1.0 must not be negative"),
        ({"top_p": [1.0, 0.0]}, "top_p=0.0 must be in"),
        ({"uniforms": None}, "needs uniforms"),
        ({"uniforms": torch.zeros(4, 16)}, r"uniforms have shape \[4, 16\], expected \[4, 32\]"),
    ],
)
def test_bad_arguments_are_named(model, change, message):
    with pytest.raises(ValueError, match=message):
        sample(model, LABELS, **{"uniforms": uniforms()} | MIXED | change)


@pytest.mark.parametrize("key", ["guidance_scale", "temperature", "top_k", "top_p"])
def test_a_list_of_the_wrong_length_is_refused_before_anything_is_drawn(model, key):
    settings = SamplingSettings(**{key: [1, 1, 1]})
    with pytest.raises(ValueError, match=rf"{key}=\[1, 1, 1\] has 3 numbers.*G=2"):
        numbers_needed(model, settings)
    with pytest.raises(ValueError, match=rf"{key}=\[1, 1\] has 2 numbers.*G=1"):
        numbers_needed(filled(lambda: GPT(**GPT_TINY)), SamplingSettings(**{key: [1, 1]}))


def test_settings_are_read_strictly():
    section = {"temperature": [1, 0.5], "top_k": 3, "guidance_scale": [1.9, 2]}
    settings = build_dataclass(SamplingSettings, section, "sampling")
    assert settings.temperature == [1.0, 0.5] and settings.top_k == 3 and settings.top_p == 1.0
    for wrong in ("hot", [1.0, "hot"], {"a": 1.0}, True, None):
        with pytest.raises(ConfigError, match=r"sampling.temperature=.* expected float or list of float"):
            build_dataclass(SamplingSettings, {"temperature": wrong}, "sampling")
    with pytest.raises(ConfigError, match=r"temperature=\[1.0, -1.0\] must not be negative"):
        build_dataclass(SamplingSettings, {"temperature": [1.0, -1.0]}, "sampling")
    with pytest.raises(ConfigError, match="top_k=-1 must not be negative"):
        build_dataclass(SamplingSettings, {"top_k": [2, -1]}, "sampling")
    with pytest.raises(ConfigError, match="expected float"):
        build_dataclass(MaskedSamplingSettings, {"temperature": [1.0, 1.0]}, "sampling")


def test_guidance_equals_reference():
    expected = golden("magvit2_misc")
    logits = torch.cat([torch.from_numpy(expected[f"cfg_{part}"]) for part in ("cond", "uncond")])
    for scale, mixed in zip(expected["cfg_scales"].tolist(), expected["cfg_mixed"], strict=True):
        assert_close(guide(logits, scale), mixed, atol=1e-5)


def test_filters_equal_reference():
    expected = golden("magvit2_misc")
    logits = torch.from_numpy(expected["filter_logits"])
    for number, (top_k, top_p) in enumerate(expected["filter_cases"].tolist()):
        kept = filter_logits(logits, int(top_k), top_p).isfinite()
        assert torch.equal(kept, torch.from_numpy(expected[f"filter_keep_{number}"])), (top_k, top_p)
