"""Cached decoding equals the full forward and the reference."""

import pytest
import torch

from modeling.generators import GPT
from modeling.sampling.guidance import guide
from tests.modeling.generators.test_gpt import GPT_B, TINY, batch
from tests.parity import filled, golden


def decode(model: GPT, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Teacher-forced `[N, R, V]`."""
    session = model.start_decoding(labels)
    inputs = [None, *tokens[:, :-1].unbind(dim=1)]
    return torch.stack([session.next_logits(newest) for newest in inputs])


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2])
def test_gpt_b_greedy_tokens_equal_reference(scale):
    model = filled(lambda: GPT(**GPT_B))
    session = model.start_decoding(torch.tensor([88, 974, 1000, 1000]))
    newest, tokens = None, []
    for _ in range(20):
        tokens.append(guide(session.next_logits(newest), scale).argmax(dim=-1))
        newest = tokens[-1].repeat(2)
    expected = golden("ut_llamagen_gpt_b")[f"generated_cfg{scale}"]
    assert torch.equal(torch.stack(tokens, dim=1), torch.from_numpy(expected).long())


@pytest.mark.parametrize("rope", ["2d", "1d"])
def test_decoding_equals_forward(rope):
    model = filled(lambda: GPT(**TINY, rope=rope, dropout=0.5, attention_dropout=0.5))
    tokens, labels = batch()
    with torch.no_grad():
        full = model(tokens, labels)[:, :-1].transpose(0, 1)
    model.train()  # decoding never drops out
    torch.testing.assert_close(decode(model, tokens, labels), full, atol=2e-5, rtol=1e-5)


def test_sessions_do_not_disturb_each_other():
    model = filled(lambda: GPT(**TINY))
    tokens, labels = batch()
    alone = decode(model, tokens, labels)
    first, second = (model.start_decoding(labels) for _ in range(2))
    for step in range(16):
        newest = None if step == 0 else tokens[:, step - 1]
        assert torch.equal(first.next_logits(newest), alone[step])
        second.next_logits(None if step == 0 else tokens[:, 0])


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_decoding_in_bfloat16_follows_the_forward(cast):
    model = filled(lambda: GPT(**TINY))
    tokens, labels = batch()
    with torch.no_grad():
        full = model(tokens, labels)[:, :-1].transpose(0, 1)
    if cast == "weights":
        logits = decode(model.bfloat16(), tokens, labels)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            logits = decode(model, tokens, labels)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - full).abs().mean() < 0.02 * full.std()


@pytest.mark.parametrize("label", [-1, 11])
def test_label_out_of_range_is_named(label):
    with pytest.raises(ValueError, match=rf"label {label} is out of range; choose 0 ... 10"):
        GPT(**TINY).start_decoding(torch.tensor([0, label]))
