"""UViT's layout and forward against the reference."""

import pytest
import torch

from modeling.generators import UViT
from tests.modeling.generators.masked_models import BERT_TINY, BUILDERS, check_forward, masked_model
from tests.parity import assert_layout, filled

TINY = BERT_TINY | {"depth": 4}


def test_state_dict_is_the_released_one():
    with torch.device("meta"):
        assert_layout(BUILDERS["generator_titok_s128"](), "generator_titok_s128")


def test_forward_equals_reference():
    check_forward(*masked_model("uvit_small"))


def test_an_odd_depth_is_rounded_down():
    with torch.device("meta"):
        odd, even = UViT(**(TINY | {"depth": 5})), UViT(**TINY)
    assert list(odd.state_dict()) == list(even.state_dict())
    assert len(odd.in_blocks) == len(odd.out_blocks) == 2


def test_initialisation():
    torch.manual_seed(0)
    state = UViT(**TINY).state_dict()
    for name in ("pos_embed", "embeddings.weight", "out_blocks.1.skip_linear.weight", "lm_head.weight"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.06)
    assert all(not p.any() for n, p in state.items() if n.endswith("bias"))
    assert "mid_block.attn.qkv.bias" not in state


def test_activation_checkpointing_changes_no_gradient():
    tokens, labels = torch.arange(32).view(2, 16), torch.tensor([3, 10])
    gradients = []
    for activation_checkpointing in (False, True):
        model = filled(lambda on=activation_checkpointing: UViT(**TINY, activation_checkpointing=on))
        model(tokens, labels).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_bfloat16_autocast_follows_float32():
    model = filled(lambda: UViT(**TINY))
    tokens, labels = torch.arange(32).view(2, 16), torch.tensor([3, 10])
    with torch.no_grad():
        full = model(tokens, labels)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(tokens, labels)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().mean() < 0.03 * full.std()


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="hidden_size=66 must be a multiple of num_heads=4"):
        UViT(**(TINY | {"hidden_size": 66}))
    with pytest.raises(ValueError, match=r"\[16\], expected \[B, 16\]"):
        UViT(**TINY)(torch.zeros(16, dtype=torch.long), torch.zeros(1, dtype=torch.long))
