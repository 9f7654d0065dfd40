"""RAR's layout, teacher-forced forward and gradients against the reference."""

import pytest
import torch

from modeling.generators import RAR
from modeling.generators.orders import permute_tokens
from modeling.losses.tokens import autoregressive_loss
from tests.parity import assert_close, assert_layout, filled, golden

TINY = {"codebook_size": 48, "num_classes": 10, "num_tokens": 16}
TINY |= {"hidden_size": 64, "depth": 3, "num_heads": 4, "mlp_size": 160}
RELEASED = {
    "rar_b": {"hidden_size": 768, "depth": 24, "mlp_size": 3072},
    "rar_l": {"hidden_size": 1024, "depth": 24, "mlp_size": 4096},
    "rar_xl": {"hidden_size": 1280, "depth": 32, "mlp_size": 5120},
    "rar_xxl": {"hidden_size": 1408, "depth": 40, "mlp_size": 6144},
}
IMAGENET = {"codebook_size": 1024, "num_classes": 1000, "num_tokens": 256, "num_heads": 16}


def tensors(name: str) -> dict[str, torch.Tensor]:
    """A golden file as tensors."""
    return {key: torch.from_numpy(value) for key, value in golden(name).items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return tensors("rar_tiny")


@pytest.fixture
def tiny() -> RAR:
    return filled(lambda: RAR(**TINY))


@pytest.mark.parametrize("name", RELEASED)
def test_state_dict_is_the_released_one(name):
    with torch.device("meta"):
        model = RAR(**IMAGENET, **RELEASED[name])
    assert_layout(model, name)


def check_forward(model: RAR, expected: dict[str, torch.Tensor]) -> None:
    tokens, labels, rows = expected["tokens"], expected["classes"], expected["positions"].long()
    for name, orders in (("raster", None), ("permuted", expected["orders"])):
        logits = model(tokens, labels, orders)
        assert_close(logits[:, rows], expected[f"{name}_logits"].numpy(), atol=1e-4, rtol=1e-4)
        assert_close(logits.logsumexp(-1), expected[f"{name}_logsumexp"].numpy(), atol=1e-4, rtol=1e-4)
        targets = permute_tokens(tokens, orders)
        assert torch.equal(targets, expected[f"{name}_labels"])
        loss, accuracy = autoregressive_loss(logits, targets)
        assert_close(loss, expected[f"{name}_loss"].numpy(), atol=1e-5, rtol=1e-5)
        assert_close(accuracy, expected[f"{name}_correct_tokens"].numpy(), atol=1e-6)
    none = model(tokens, torch.full_like(labels, model.none_label))
    assert_close(none[:, rows], expected["raster_none_logits"].numpy(), atol=1e-4, rtol=1e-4)


def test_forward_equals_reference(tiny, expected):
    with torch.no_grad():
        check_forward(tiny, expected)


@pytest.mark.slow
def test_rar_b_forward_equals_reference():
    with torch.no_grad():
        check_forward(filled(lambda: RAR(**IMAGENET, **RELEASED["rar_b"])), tensors("rar_b"))


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_gradients_equal_reference(expected, activation_checkpointing):
    model = filled(lambda: RAR(**TINY, activation_checkpointing=activation_checkpointing))
    logits = model(expected["tokens"], expected["classes"], expected["orders"])
    autoregressive_loss(logits, expected["permuted_labels"])[0].backward()
    for name, parameter in model.named_parameters():
        # A bias on all keys cannot move the softmax: the gradient of k_norm.bias is rounding noise, hence atol.
        norm = expected[f"grad_norm/{name}"].numpy()
        assert_close(parameter.grad.norm(), norm, atol=1e-6, rtol=1e-3)


def test_raster_order_given_explicitly_changes_nothing(tiny, expected):
    raster = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        implicit = tiny(expected["tokens"], expected["classes"])
        explicit = tiny(expected["tokens"], expected["classes"], raster)
    torch.testing.assert_close(explicit, implicit, atol=1e-6, rtol=1e-5)


def test_samples_of_one_class_may_share_conditions(tiny):
    """A batch larger than the number of classes takes the shared path; logits and gradients stay the same."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(48, (14, 16), generator=generator)
    labels = torch.randint(11, (14,), generator=generator)
    results = []
    for pieces in (1, 2):
        tiny.zero_grad()
        parts = zip(tokens.chunk(pieces), labels.chunk(pieces), strict=True)
        logits = torch.cat([tiny(*part) for part in parts])
        autoregressive_loss(logits, tokens)[0].backward()
        results.append((logits.detach(), {n: p.grad.clone() for n, p in tiny.named_parameters()}))
    (shared, shared_grads), (apart, apart_grads) = results
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared_grads, apart_grads, atol=1e-6, rtol=1e-4)


def test_logits_see_earlier_tokens_only(tiny, expected):
    tokens = expected["tokens"].clone()
    with torch.no_grad():
        before = tiny(tokens, expected["classes"])
        tokens[:, 9] = (tokens[:, 9] + 1) % 48
        changed = (tiny(tokens, expected["classes"]) != before).any(dim=-1).any(dim=0)
    assert changed.tolist() == [False] * 10 + [True] * 7


def test_initialisation():
    torch.manual_seed(0)
    model = RAR(**TINY)
    assert not model.cls_token.any()
    assert all(not p.any() for n, p in model.named_parameters() if "adaLN" in n or n.endswith("qkv.bias"))
    for name in ("pos_embed", "embeddings.weight", "blocks.0.mlp.fc1.weight", "lm_head.weight"):
        assert model.state_dict()[name].std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.blocks[0].norm1.weight, torch.ones(64))


def test_dropout_is_on_in_training_mode_only():
    model = filled(lambda: RAR(**TINY, dropout=0.5, attention_dropout=0.5))
    tokens, labels = torch.zeros(2, 16, dtype=torch.long), torch.tensor([0, 1])
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model(tokens, labels), model(tokens, labels))
        model.train()
        assert not torch.equal(model(tokens, labels), model(tokens, labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 66}, "hidden_size=66 must be a multiple of num_heads=4"),
        ({"extra_step_rows": 1}, "extra_step_rows=1"),
        ({"codebook_size": 0}, "codebook_size=0"),
        ({"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RAR(**(TINY | change))


def test_tokens_of_another_length_are_refused(tiny):
    with pytest.raises(ValueError, match=r"\[2, 15\], expected \[B, 16\]"):
        tiny(torch.zeros(2, 15, dtype=torch.long), torch.zeros(2, dtype=torch.long))
