"""Attention and blocks against torch's own modules."""

import pytest
import torch
from torch import nn

from modeling.layers.attention import SelfAttention
from modeling.layers.transformer import TransformerBlock, run_blocks


def test_attention_equals_torch_with_the_same_state_dict() -> None:
    ours, theirs = SelfAttention(hidden_size=24, num_heads=3), nn.MultiheadAttention(24, 3, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_attention_has_torch_names_and_order() -> None:
    names = list(SelfAttention(hidden_size=8, num_heads=2).state_dict())
    assert names == list(nn.MultiheadAttention(8, 2).state_dict())
    with pytest.raises(ValueError, match="hidden_size=8 must be a multiple of num_heads=3"):
        SelfAttention(hidden_size=8, num_heads=3)


def test_block_equals_torch_encoder_layer() -> None:
    block = TransformerBlock(hidden_size=16, num_heads=2)
    layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn": "self_attn",
        "mlp.c_fc": "linear1",
        "mlp.c_proj": "linear2",
    }
    state = block.state_dict()
    for ours, theirs in names.items():
        state = {
            k.replace(f"{ours}.", f"{theirs}.") if k.startswith(ours) else k: v for k, v in state.items()
        }
    layer.load_state_dict(state)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(block(x), layer(x))


@pytest.mark.parametrize("rows", [slice(1, 4), slice(3, None), slice(0, 6)])
def test_restricting_rows_changes_neither_values_nor_gradients(rows: slice) -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(TransformerBlock(hidden_size=16, num_heads=2) for _ in range(2))
    x = torch.randn(2, 6, 16)
    full_input, input_ = x.clone().requires_grad_(), x.clone().requires_grad_()
    full = blocks[1](blocks[0](full_input))[:, rows]
    full.square().sum().backward()
    expected = [p.grad for p in blocks.parameters()]
    blocks.zero_grad()
    restricted = run_blocks(blocks, input_, rows)
    restricted.square().sum().backward()
    torch.testing.assert_close(restricted, full)
    torch.testing.assert_close(input_.grad, full_input.grad)
    torch.testing.assert_close([p.grad for p in blocks.parameters()], expected)
