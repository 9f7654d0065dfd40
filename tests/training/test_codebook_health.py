"""Codebook statistics against a naive count, alarm at a collapse, and the numbers in a training log."""

import json
import math

import pytest
import torch

import train_titok
from modeling.quantizers.vq import VectorQuantizer
from training.codebook_health import DECAY, HORIZON, CodebookHealth
from training.tokenizer_settings import TokenizerRun


def test_equals_a_naive_count():
    torch.manual_seed(0)
    health, batches = CodebookHealth(20), [torch.randint(0, 15, (4, 6)) for _ in range(150)]
    # Codes 10 to 14 go out of use after a while; those from 15 on never are in use.
    batches = [b if i < 30 else b % 10 for i, b in enumerate(batches)]
    for batch in batches:
        scalars = health.update(batch)
    used = {int(t) for batch in batches[-HORIZON:] for t in batch.flatten()}
    assert scalars["dead_codes"] == 20 - len(used) and len(used) == 10
    assert float(scalars["codebook_usage"]) == pytest.approx(len(used) / 20)
    share = [0.0] * 20
    for batch in batches:
        for code in range(20):
            share[code] = DECAY * share[code] + (1 - DECAY) * float((batch == code).float().mean())
    total = sum(share)
    entropy = -sum(s / total * math.log(s / total) for s in share if s)
    assert float(scalars["codebook_perplexity"]) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_one_code_is_a_perplexity_of_one():
    scalars = CodebookHealth(8).update(torch.zeros(2, 3, dtype=torch.int64))
    assert {k: float(v) for k, v in scalars.items()} == {
        "codebook_usage": 0.125,
        "codebook_perplexity": 1.0,
        "dead_codes": 7.0,
    }


def test_warns_once_when_the_codebook_collapses():
    health = CodebookHealth(1000)
    sound = {"codebook_usage": 0.5, "codebook_perplexity": 300.0}
    collapsed = {"codebook_usage": 0.01, "codebook_perplexity": 3.0}
    assert health.warning(10, collapsed) is None, "every codebook is hardly used in its first steps"
    assert health.warning(1000, sound) is None
    text = health.warning(2000, collapsed)
    assert (
        text.startswith("step 2000: the codebook of the tokenizer collapses") and "online_clustering" in text
    )
    assert "with lfq, bsq and ibq a larger entropy_weight" in text, "which have no codes to be moved"
    assert health.warning(2050, collapsed) is None
    assert health.warning(2100, sound) is None and health.warning(3000, collapsed)


def test_quantizers_count_the_codes_they_move():
    torch.manual_seed(0)
    latents = torch.randn(2, 4, 1, 6)
    clustering = VectorQuantizer(codebook_size=32, code_dim=4, online_clustering=True).train()
    tokens = clustering(latents).tokens
    update = clustering.update_codebook(latents, tokens)
    assert update.revived == 32 - len(tokens.unique()), "all codes that no token chose move"
    restarting = VectorQuantizer(codebook_size=32, code_dim=4, revive_below=0.5).train()
    moved = [int(restarting.update_codebook(latents, restarting(latents).tokens).revived) for _ in range(100)]
    assert moved[0] == 0 and max(moved) >= 20, "unused codes fall under the limit together"
    plain = VectorQuantizer(codebook_size=32, code_dim=4).train()
    assert plain.update_codebook(latents, plain(latents).tokens) is None


def test_a_training_log_holds_it(tmp_path, program):
    done = program(
        train_titok,
        TokenizerRun,
        "config=configs/debug/titok.yaml",
        "training.max_steps=3",
        "training.log_every=1",
        f"experiment.output_dir={tmp_path}",
    )
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [r for r in records if r["kind"] == "train"]
    assert len(trained) == 3
    assert {"codebook_usage", "codebook_perplexity", "dead_codes", "revived_codes"} <= trained[0].keys()


def test_a_large_codebook_equals_a_count_by_sets():
    size, draws = 2**18, torch.Generator().manual_seed(0)
    health = CodebookHealth(size)
    batches = [torch.randint(size, (8, 256), generator=draws) for _ in range(HORIZON + 20)]
    for batch in batches:
        scalars = health.update(batch)
    used = set(torch.cat(batches[-HORIZON:]).flatten().tolist())
    assert float(scalars["dead_codes"]) == size - len(used)
    assert float(scalars["codebook_usage"]) == pytest.approx(len(used) / size, rel=1e-5)
    assert all(value.numel() == 1 for value in scalars.values()), "nothing of the codebook's size is logged"
    assert sum(b.numel() for b in health.buffers()) == 2 * size


def test_small_batches_of_a_large_codebook_are_no_collapse():
    """32 tokens per batch, all different: 3200 of 2^18 codes within a hundred batches, and not one more is possible."""
    size, draws = 2**18, torch.Generator().manual_seed(0)
    health = CodebookHealth(size)
    for _ in range(2 * HORIZON):
        scalars = health.update(torch.randint(size, (32,), generator=draws))
    values = {name: float(value) for name, value in scalars.items()}
    assert values["codebook_usage"] * size < 0.02 * size, "what would be alarming with large batches"
    assert health.warning(1000, values) is None
    for _ in range(2 * HORIZON):
        scalars = health.update(torch.randint(20, (32,), generator=draws))
    assert "collapses" in health.warning(2000, {name: float(value) for name, value in scalars.items()})


def test_too_many_codes_are_refused_before_their_memory_is_asked_for():
    with pytest.raises(ValueError, match="tokenizer.quantizer has 1099511627776 codes.*at most 1073741824"):
        CodebookHealth(2**40)
