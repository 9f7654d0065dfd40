"""Rows of a token file as sub-tokens."""

import pickle

import numpy as np
import pytest
import torch

from data.image_folder import ImageFolder
from data.loaders import eval_loader
from data.stream import TrainStream
from data.token_memmap import TokenMemmap
from data.token_view import SplitTokens
from modeling.token_factors import TokenFactors

FACTORS = TokenFactors((7, 7))


@pytest.fixture
def pair(tiny_token_file):
    whole = TokenMemmap(path=tiny_token_file)  # 300 rows of 6 tokens below 48, so below 7 x 7
    return whole, SplitTokens(whole, FACTORS.split, 2)


def test_sub_tokens_of_a_token_stand_together(pair):
    whole, parts = pair
    indices, draws = [5, 0, 299], [np.random.default_rng(i) for i in range(3)]
    tokens, rows = whole.load_many(indices, draws), parts.load_many(indices, draws)
    assert rows.shape == (3, 12) and parts.item_shape == (12,) and len(parts) == 300
    assert torch.equal(rows[:, 0::2], tokens % 7) and torch.equal(rows[:, 1::2], tokens // 7)
    row, label = parts.load(299, draws[0])
    assert torch.equal(row, rows[2]) and label == whole.labels[299] and parts.class_names == whole.class_names


def test_loaders_take_it_like_the_file_itself(pair):
    whole, parts = pair
    batches = [TrainStream(s, seed=3).__getitems__([0, 1, 700]) for s in pair]
    assert torch.equal(batches[1]["tokens"], FACTORS.split(batches[0]["tokens"]).flatten(1))
    assert torch.equal(batches[1]["labels"], batches[0]["labels"])
    (first, *_) = eval_loader(parts, batch_size=4)
    again = pickle.loads(pickle.dumps(parts))  # what workers that are not forked get
    assert torch.equal(again.load_many(range(4), [np.random.default_rng(0)] * 4), first["tokens"])


def test_images_have_no_sub_tokens(image_folder):
    with pytest.raises(ValueError, match="a source of images has no tokens"):
        SplitTokens(ImageFolder(path=image_folder, image_size=16), FACTORS.split, 2)
