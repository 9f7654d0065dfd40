"""What transformer blocks say about their matrices."""

import inspect

import pytest

from modeling.generators import GENERATORS
from modeling.generators.maskgit import BertBlock
from modeling.generators.rar import RARBlock
from modeling.generators.uvit import UViTBlock
from modeling.layers.llama import LlamaBlock, ModulatedLlamaBlock
from modeling.layers.trainable import Block, Trainable, blocks
from modeling.layers.transformer import TransformerBlock
from modeling.losses import DISCRIMINATORS
from modeling.tokenizers import TOKENIZERS
from modeling.tokenizers.vqkd import ViTBlock

KINDS = (BertBlock, RARBlock, UViTBlock, LlamaBlock, ModulatedLlamaBlock, TransformerBlock, ViTBlock)


def build(kind: type[Block]) -> Block:
    options = {"hidden_size": 8, "num_heads": 2, "mlp_size": 16, "dropout": 0.0, "attention_dropout": 0.0}
    return kind(**{k: v for k, v in options.items() if k in inspect.signature(kind).parameters})


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_listed_and_stacked_names_exist(kind):
    block = build(kind)
    found, shapes = block.muon_projections(), dict(block.named_parameters())
    assert set(found) == {p for p in block.parameters() if p.ndim == 2}
    assert block.stacked.keys() <= shapes.keys()
    for name, count in block.stacked.items():
        assert shapes[name].shape == (count * 8, 8) and found[shapes[name]] == count
    joint = [name for name, p in shapes.items() if "qkv" in name and p.ndim == 2]
    assert set(joint) <= block.stacked.keys()
    assert blocks(block) == [block]


@pytest.mark.parametrize("kind", [*TOKENIZERS.values(), *GENERATORS.values(), *DISCRIMINATORS.values()])
def test_models_can_say_what_decays(kind):
    assert issubclass(kind, Trainable)
