"""Decoding sub-token by sub-token equals the full forward and the reference."""

import pytest
import torch

from modeling.generators import FactorizedAR
from modeling.generators.cache import KVCache
from modeling.sampling.guidance import guide
from tests.modeling.generators.test_factorized_ar import IMAGENET, RELEASED, TINY, VARIANTS, batch
from tests.parity import filled, golden


def decode(model: FactorizedAR, tokens: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Teacher-forced: per kind of sub-token `[R, N, factors[g]]`."""
    session, count = model.start_decoding(labels), len(model.factors)
    digits = model.token_factors.split(tokens).flatten(1)
    inputs = [None, *digits[:, :-1].unbind(dim=1)]
    logits = [session.next_logits(newest) for newest in inputs]
    return [torch.stack(logits[g::count], dim=1) for g in range(count)]


@pytest.mark.parametrize("options", VARIANTS)
def test_decoding_equals_forward(options):
    model = filled(lambda: FactorizedAR(**options, dropout=0.5))
    tokens, labels = batch(options)
    with torch.no_grad():
        full = model(tokens, labels)
    model.train()  # decoding never drops out
    for step, reference in zip(decode(model, tokens, labels), full, strict=True):
        torch.testing.assert_close(step, reference, atol=2e-5, rtol=1e-5)


def check_greedy(model: FactorizedAR, expected: dict, prefix: str, scales: list[float]) -> None:
    """Every row up to its first close decision; guidance 1 runs conditional rows only."""
    labels = torch.from_numpy(expected[f"{prefix}_classes"])[:, 0]
    guided = scales != [1, 1]
    rows = torch.cat([labels, torch.full_like(labels, model.none_label)]) if guided else labels
    session, newest, found = model.start_decoding(rows), None, []
    gaps = torch.from_numpy(expected[f"{prefix}_gaps"])
    for call in range(len(gaps)):
        logits = session.next_logits(newest)
        found.append((guide(logits, scales[call % 2]) if guided else logits).argmax(dim=-1))
        newest = found[-1].repeat(2) if guided else found[-1]
    parts = [torch.from_numpy(expected[f"{prefix}_{part}"]).long() for part in ("pre", "post")]
    wanted = torch.stack(parts, dim=-1).flatten(1)
    clear = (gaps >= 2e-4).long().cumprod(dim=0).bool().T
    assert clear.float().mean() > 0.6
    assert torch.equal(torch.stack(found, dim=1)[clear], wanted[clear])


@pytest.mark.slow
def test_ar_b_equals_reference():
    model, expected = (
        filled(lambda: FactorizedAR(**IMAGENET, **RELEASED["magvit2_ar_b"])),
        golden("magvit2_ar_b"),
    )
    check_greedy(model, expected, "greedy", expected["greedy_cfg"].tolist())
    check_greedy(model, expected, "nocfg", [1, 1])
    digits = torch.stack([torch.from_numpy(expected[f"idx_{part}"]).long() for part in ("pre", "post")], -1)
    labels, session = torch.from_numpy(expected["classes"])[:, 0], None
    with torch.no_grad():
        full = model(model.token_factors.join(digits), labels)
    session, newest = model.start_decoding(labels), None
    for call in range(40):
        place, part = divmod(call, 2)
        difference = (session.next_logits(newest) - full[part][:, place]).abs().max()
        assert difference < 2e-4
        newest = digits[:, place, part]


def test_caches_are_allocated_once_and_no_larger_than_needed(monkeypatch):
    lengths, allocate = [], KVCache.__init__

    def count(cache: KVCache, **options) -> None:
        lengths.append(options["length"])
        allocate(cache, **options)

    monkeypatch.setattr(KVCache, "__init__", count)
    decode(filled(lambda: FactorizedAR(**TINY)), *batch())
    assert lengths == [16, 2]


def test_sessions_do_not_disturb_each_other():
    model = filled(lambda: FactorizedAR(**TINY))
    tokens, labels = batch()
    alone = decode(model, tokens, labels)
    first, second = (model.start_decoding(labels) for _ in range(2))
    digits = model.token_factors.split(tokens).flatten(1)
    for call in range(32):
        newest = None if call == 0 else digits[:, call - 1]
        assert torch.equal(first.next_logits(newest), alone[call % 2][:, call // 2])
        second.next_logits(None if call == 0 else torch.zeros_like(digits[:, 0]))


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_decoding_in_bfloat16_follows_the_forward(cast):
    model = filled(lambda: FactorizedAR(**TINY))
    tokens, labels = batch()
    with torch.no_grad():
        full = model(tokens, labels)
    if cast == "weights":
        logits = decode(model.bfloat16(), tokens, labels)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            logits = decode(model, tokens, labels)
    for part, reference in zip(logits, full, strict=True):
        assert part.dtype == torch.bfloat16
        assert (part.float() - reference).abs().mean() < 0.02 * reference.std()


@pytest.mark.parametrize("label", [-1, 11])
def test_label_out_of_range_is_named(label):
    with pytest.raises(ValueError, match=rf"label {label} is out of range; choose 0 ... 10"):
        FactorizedAR(**TINY).start_decoding(torch.tensor([0, label]))
