"""MaskGIT's layout and forward against the reference."""

import pytest
import torch

from modeling.generators import MaskGIT
from tests.modeling.generators.masked_models import BERT_TINY, BUILDERS, check_forward, masked_model
from tests.parity import assert_layout, filled


@pytest.mark.parametrize("name", ["generator_titok_l32", "generator_titok_b64"])
def test_state_dict_is_the_released_one(name):
    with torch.device("meta"):
        assert_layout(BUILDERS[name](), name)


def test_forward_equals_reference():
    check_forward(*masked_model("bert_tiny"))


@pytest.mark.slow
def test_l32_forward_equals_reference():
    check_forward(*masked_model("generator_titok_l32"))


def test_every_token_sees_every_other_and_the_label():
    model, arrays = masked_model("bert_tiny")
    tokens, labels = torch.from_numpy(arrays["masked_tokens"]), torch.from_numpy(arrays["classes"])
    with torch.no_grad():
        before = model(tokens, labels)
        changed = tokens.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 48
        assert (model(changed, labels) != before).any(-1).all()
        assert (model(tokens, (labels + 1) % 11) != before).any(-1).all()


def test_initialisation():
    torch.manual_seed(0)
    model = MaskGIT(**BERT_TINY)
    state = model.state_dict()
    for part in ("embeddings.word_embeddings", "encoder.layer.0.intermediate.dense", "lm_head"):
        assert state[f"model.{part}.weight"].std().item() == pytest.approx(0.02, rel=0.06)
    assert state["model.embeddings.word_embeddings.weight"].any(dim=1).all()
    assert all(not p.any() for n, p in state.items() if n.endswith("bias"))
    assert all((p == 1).all() for n, p in state.items() if n.endswith("LayerNorm.weight"))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_is_on_in_training_mode_only(kind):
    model = filled(lambda: MaskGIT(**BERT_TINY, **{kind: 0.5}))
    tokens, labels = torch.arange(32).view(2, 16), torch.tensor([0, 1])
    torch.manual_seed(0)
    with torch.no_grad():
        assert torch.equal(model(tokens, labels), model(tokens, labels))
        model.train()
        assert not torch.equal(model(tokens, labels), model(tokens, labels))


def test_activation_checkpointing_changes_no_gradient():
    tokens, labels = torch.arange(32).view(2, 16), torch.tensor([3, 10])
    gradients = []
    for activation_checkpointing in (False, True):
        model = filled(lambda on=activation_checkpointing: MaskGIT(**BERT_TINY, activation_checkpointing=on))
        model(tokens, labels).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 66}, "hidden_size=66 must be a multiple of num_heads=4"),
        ({"num_tokens": 0}, "num_tokens=0"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        MaskGIT(**(BERT_TINY | change))


def test_tokens_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 15\], expected \[B, 16\]"):
        MaskGIT(**BERT_TINY)(torch.zeros(2, 15, dtype=torch.long), torch.zeros(2, dtype=torch.long))
