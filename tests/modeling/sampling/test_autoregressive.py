import numpy as np
import pytest
import torch

from modeling.generators import RAR
from modeling.sampling.autoregressive import choose_tokens, sample
from modeling.sampling.noise import sample_uniforms
from tests.modeling.generators.test_rar import IMAGENET, RELEASED, TINY, tensors
from tests.parity import filled

SETTINGS = {"guidance_scale": 4.0, "guidance_power": 2.0, "temperature": 1.0}


@pytest.fixture(scope="module")
def model() -> RAR:
    return filled(lambda: RAR(**TINY, dropout=0.5, attention_dropout=0.5))


def greedy(model: RAR, expected: dict[str, torch.Tensor]) -> torch.Tensor:
    scale, power, _ = expected["sampling"].tolist()
    return sample(model, expected["classes"], guidance_scale=scale, guidance_power=power, temperature=0)


def check_greedy(model: RAR, expected: dict[str, torch.Tensor]) -> None:
    """Up to the first step of a sample that rounding may decide."""
    clear = (expected["greedy_margin"] >= 5e-4).long().cumprod(dim=1).bool()
    assert clear[:, 0].all()
    assert torch.equal(greedy(model, expected)[clear], expected["greedy_tokens"][clear])


def test_greedy_tokens_equal_reference(model):
    check_greedy(model, tensors("rar_tiny"))


@pytest.mark.slow
def test_rar_b_greedy_tokens_equal_reference():
    check_greedy(filled(lambda: RAR(**IMAGENET, **RELEASED["rar_b"])), tensors("rar_b"))


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_a_sample_does_not_depend_on_its_batch(model, scale):
    labels = torch.arange(16) % 5
    settings = SETTINGS | {"guidance_scale": scale}
    together = sample(model, labels, **settings, uniforms=sample_uniforms(3, range(16), 16))
    indices = torch.arange(16).split(3)
    apart = [sample(model, labels[i], **settings, uniforms=sample_uniforms(3, i, 16)) for i in indices]
    assert torch.equal(torch.cat(apart), together)
    assert together.unique(dim=0).shape[0] == 16


def test_sampling_equals_naive_full_forwards(model):
    """The sampler written with nothing but the forward pass."""
    labels, uniforms = torch.tensor([4, 9, 4]), sample_uniforms(0, range(3), 16)
    tokens = torch.zeros(3, 16, dtype=torch.long)
    for step in range(16):
        with torch.no_grad():
            conditional, unconditional = (
                model(tokens, y)[:, step] for y in (labels, torch.full_like(labels, model.none_label))
            )
        weight = 1 + 3 * 0.5 * (1 - np.cos(np.pi * (step / 16) ** 2))
        probabilities = (unconditional + weight * (conditional - unconditional)).double().softmax(-1)
        tokens[:, step] = (probabilities.cumsum(-1) <= uniforms[:, step : step + 1]).sum(-1)
    assert torch.equal(sample(model, labels, **SETTINGS, uniforms=uniforms), tokens)


def test_training_mode_does_not_drop_out(model):
    labels, uniforms = torch.tensor([1, 2]), sample_uniforms(0, range(2), 16)
    expected = sample(model, labels, **SETTINGS, uniforms=uniforms)
    model.train()
    try:
        assert torch.equal(sample(model, labels, **SETTINGS, uniforms=uniforms), expected)
        assert model.training
    finally:
        model.eval()


def test_progress_and_output(model):
    seen = []
    tokens = sample(
        model, torch.tensor([1]), **(SETTINGS | {"temperature": 0}), progress=lambda *step: seen.append(step)
    )
    assert seen == [(step, 16) for step in range(1, 17)]
    assert tokens.dtype == torch.int64 and not tokens.is_inference()


def test_uniforms_depend_on_seed_and_index_alone():
    together = sample_uniforms(5, [0, 1, 70_000], 32)
    assert together.dtype == torch.float64 and together.min() >= 0 and together.max() < 1
    assert torch.equal(sample_uniforms(5, torch.tensor([70_000]), 32), together[2:])
    assert not torch.equal(sample_uniforms(6, [1], 32), together[1:2])
    assert not torch.equal(sample_uniforms(1, [5], 32), sample_uniforms(5, [1], 32))
    assert sample_uniforms(5, range(500), 32).mean().item() == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="must not be negative"):
        sample_uniforms(0, [-1], 4)


def test_choose_tokens_inverts_the_distribution():
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log()  # an impossible token in between
    uniform = torch.tensor([0.0, 0.499, 0.501, 0.749, 0.751, 1 - 2**-53], dtype=torch.float64)
    assert choose_tokens(logits.expand(6, -1), 1.0, uniform).tolist() == [0, 0, 2, 2, 3, 3]
    assert choose_tokens(logits[None], 0, None).tolist() == [0]


def test_choose_tokens_follows_the_temperature():
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    uniform = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1]
    drawn = choose_tokens(logits.expand(20_000, -1), 0.5, uniform).bincount(minlength=6) / 20_000
    torch.testing.assert_close(drawn, (logits[0] * 2).softmax(-1), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"uniforms": None}, "temperature=1.0 needs uniforms"),
        ({"uniforms": torch.zeros(1, 15)}, r"uniforms have shape \[1, 15\], expected \[1, 16\]"),
        ({"labels": torch.zeros(1, 1, dtype=torch.long)}, r"labels have shape \[1, 1\]"),
        ({"labels": torch.tensor([12])}, "label 12 is out of range; choose 0 ... 10"),
        ({"guidance_scale": -2.0}, "guidance_scale=-2.0"),
    ],
)
def test_bad_arguments_are_named(model, change, message):
    arguments = {"labels": torch.tensor([1]), "uniforms": torch.zeros(1, 16)} | SETTINGS | change
    with pytest.raises(ValueError, match=message):
        sample(model, arguments.pop("labels"), **arguments)
