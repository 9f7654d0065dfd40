"""Cached decoding equals the full forward and the reference."""

import pytest
import torch

from modeling.generators import RAR, rar
from modeling.sampling.guidance import guide, power_cosine_schedule
from tests.modeling.generators.test_rar import IMAGENET, RELEASED, TINY, tensors
from tests.parity import assert_close, filled


def decode(model: RAR, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Teacher-forced `[N, R, V]`."""
    session = model.start_decoding(labels)
    inputs = [None, *tokens[:, :-1].unbind(dim=1)]
    return torch.stack([session.next_logits(newest) for newest in inputs])


def check_decoding(model: RAR, expected: dict[str, torch.Tensor]) -> None:
    labels = torch.cat([expected["classes"], torch.full((2,), model.none_label)])
    logits = decode(model, expected["tokens"].repeat(2, 1), labels)
    steps = expected["decode_steps"].long()
    assert_close(logits[steps], expected["decode_logits"].numpy(), atol=1e-4, rtol=1e-4)
    scale, power, temperature = expected["sampling"].tolist()
    weights = power_cosine_schedule(model.num_tokens, scale, power)
    guided = torch.stack([guide(logits[step], weights[step]) for step in steps.tolist()])
    expected_probs = expected["decode_guided_probs"].numpy()
    assert_close((guided / temperature).softmax(-1), expected_probs, atol=5e-5)


def test_decoding_equals_reference():
    check_decoding(filled(lambda: RAR(**TINY)), tensors("rar_tiny"))


@pytest.mark.slow
def test_rar_b_decoding_equals_reference():
    check_decoding(filled(lambda: RAR(**IMAGENET, **RELEASED["rar_b"])), tensors("rar_b"))


@pytest.mark.parametrize("budget", [1, 60_000, 2**30])
def test_decoding_equals_forward_whatever_the_chunk(monkeypatch, budget):
    """Modulation in chunks of one, some and all positions; labels in any order, repeated, dropped."""
    monkeypatch.setattr(rar, "_MODULATION_BYTES", budget)
    model = filled(lambda: RAR(**TINY))
    tokens = torch.randint(48, (5, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([7, 2, 10, 7, 0])
    with torch.no_grad():
        full = model(tokens, labels)[:, :-1].transpose(0, 1)
    torch.testing.assert_close(decode(model, tokens, labels), full, atol=2e-5, rtol=1e-5)


def test_sessions_do_not_disturb_each_other():
    model = filled(lambda: RAR(**TINY))
    tokens = torch.randint(48, (2, 16), generator=torch.Generator().manual_seed(0))
    alone = decode(model, tokens, torch.tensor([1, 2]))
    first, second = (model.start_decoding(torch.tensor([1, 2])) for _ in range(2))
    for step in range(16):
        newest = None if step == 0 else tokens[:, step - 1]
        assert torch.equal(first.next_logits(newest), alone[step])
        second.next_logits(None if step == 0 else tokens[:, 0])


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_decoding_in_bfloat16_follows_the_forward(cast):
    model = filled(lambda: RAR(**TINY))
    tokens = torch.randint(48, (2, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 10])
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
        RAR(**TINY).start_decoding(torch.tensor([0, label]))
