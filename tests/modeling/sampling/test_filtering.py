import math

import pytest
import torch

from modeling.generators import GPT
from modeling.sampling.autoregressive import choose_tokens, sample
from modeling.sampling.draw import draw
from modeling.sampling.filtering import filter_logits
from modeling.sampling.guidance import guide
from modeling.sampling.noise import sample_uniforms
from modeling.sampling.settings import SamplingSettings
from tests.modeling.generators.test_gpt import TINY
from tests.parity import assert_close, filled, golden, golden_json

CASES = list(enumerate(golden_json("ut_sampling_filters")["cases"]))
SETTINGS = {"guidance_scale": 1.75, "guidance_power": 0.0, "temperature": 0.7}


@pytest.fixture(scope="module")
def model() -> GPT:
    return filled(lambda: GPT(**TINY))


@pytest.mark.parametrize(("number", "case"), CASES)
def test_kept_tokens_and_probabilities_equal_reference(number, case):
    expected = golden("ut_sampling_filters")
    logits = torch.from_numpy(expected["logits"]) / case["temperature"]
    filtered = filter_logits(logits, case["top_k"], case["top_p"])
    assert torch.equal(filtered.isfinite(), torch.from_numpy(expected[f"kept{number}"]))
    assert_close(filtered.softmax(-1), expected[f"probs{number}"], atol=1e-6)


@pytest.mark.parametrize(("number", "case"), CASES)
def test_drawing_follows_the_filtered_distribution(number, case):
    expected = golden("ut_sampling_filters")
    logits = torch.from_numpy(expected["logits"][:1]).expand(10_000, -1)
    uniform = torch.linspace(0, 1, 10_001, dtype=torch.float64)[:-1]
    drawn = choose_tokens(logits, case["temperature"], uniform, case["top_k"], case["top_p"])
    shares = drawn.bincount(minlength=50) / 10_000
    assert_close(shares, expected[f"probs{number}"][0], atol=2e-4)
    assert torch.equal(shares[~torch.from_numpy(expected[f"kept{number}"][0])].sum(), torch.tensor(0.0))


def test_guidance_equals_reference():
    expected = golden("ut_sampling_filters")
    logits = torch.cat([torch.from_numpy(expected[key]) for key in ("cond", "uncond")])
    assert_close(guide(logits, 1.75), expected["cfg_1_75"], atol=1e-6)
    assert_close(guide(logits, 3), expected["cfg_3"], atol=1e-6)


def test_the_token_that_crosses_stays_and_so_do_ties():
    logits = torch.tensor([0.2, 0.5, 0.1, 0.2]).log()
    kept = {
        p: filter_logits(logits, 0, p).isfinite().nonzero()[:, 0].tolist() for p in (0.01, 0.49, 0.6, 0.8)
    }
    assert kept == {0.01: [1], 0.49: [1], 0.6: [0, 1], 0.8: [0, 1, 3]}
    assert filter_logits(logits, 2, 1.0).isfinite().tolist() == [True, True, False, True]


def test_nothing_to_filter_is_no_work():
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    assert all(filter_logits(logits, top_k, 1.0) is logits for top_k in (0, 7, 600))


def test_the_largest_number_never_draws_a_dropped_token():
    """The threshold stays below the total whatever its rounding, so the draw ends at the last token that is kept."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 9, generator=generator)
    logits[:, -1] = -5.0
    uniform = torch.full((2000,), 1 - 2**-53, dtype=torch.float64)
    last = filter_logits(logits, 3, 1.0).isfinite().long().cumsum(-1).argmax(-1)
    assert torch.equal(choose_tokens(logits, 1.0, uniform, top_k=3), last)


def test_sampling_equals_naive_full_forwards(model):
    """The sampler written with nothing but the forward pass, tokens in descending order."""
    labels, uniforms = torch.tensor([4, 9, 4, 0]), sample_uniforms(0, range(4), 16)
    tokens = torch.zeros(4, 16, dtype=torch.long)
    for step in range(16):
        with torch.no_grad():
            conditional, unconditional = (
                model(tokens, y)[:, step] for y in (labels, torch.full_like(labels, model.none_label))
            )
        logits = (unconditional + 1.75 * (conditional - unconditional)).double() / 0.7
        for row, values in enumerate(logits):
            likely = values.argsort(descending=True)[:12]
            probabilities = values[likely].softmax(-1)
            count = next(n for n in range(1, 13) if n == 12 or probabilities[:n].sum() > 0.8)
            kept = likely[:count].sort().values
            cumulative = values[kept].softmax(-1).cumsum(-1)
            tokens[row, step] = kept[(cumulative <= uniforms[row, step]).sum()]
    drawn = sample(model, labels, **SETTINGS, top_k=12, top_p=0.8, uniforms=uniforms)
    assert torch.equal(drawn, tokens)
    free = sample(model, labels, **SETTINGS, uniforms=uniforms)
    assert not torch.equal(free, tokens)


def test_a_sample_does_not_depend_on_its_batch(model):
    labels, settings = torch.arange(8) % 5, SamplingSettings(top_k=20, top_p=0.9)
    together = draw(model, labels, sample_uniforms(3, range(8), 16), settings)
    indices = torch.arange(8).split(3)
    apart = [draw(model, labels[i], sample_uniforms(3, i, 16), settings) for i in indices]
    assert torch.equal(torch.cat(apart), together)


def test_one_token_to_choose_from_is_the_likeliest(model):
    labels, uniforms = torch.tensor([1, 2]), sample_uniforms(0, range(2), 16)
    greedy = sample(model, labels, **SETTINGS | {"temperature": 0})
    assert torch.equal(sample(model, labels, **SETTINGS, top_k=1, uniforms=uniforms), greedy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": -1}, "top_k=-1 must not be negative"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1.5 must be in \(0, 1\]"),
        ({"top_p": math.nan}, r"top_p=nan must be in \(0, 1\]"),
    ],
)
def test_bad_settings_are_named(model, change, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**change)
    with pytest.raises(ValueError, match=message):
        sample(model, torch.tensor([1]), **SETTINGS, **change, uniforms=torch.zeros(1, 16))
