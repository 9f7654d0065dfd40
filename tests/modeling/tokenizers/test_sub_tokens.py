"""The view of a tokenizer through its sub-tokens."""

import pytest
import torch

from modeling.factory import build_tokenizer
from modeling.pipeline import decode, from_pretrained, reconstruct, save_pretrained
from modeling.tokenizers.sub_tokens import SubTokenView, equal_factors, suggest_factors
from storage.weights import weight_hash
from tests.conftest import TOKENIZER
from tests.parity import fill_module

FSQ = TOKENIZER | {"quantizer": {"name": "fsq", "levels": [4, 4, 4]}}


@pytest.fixture
def tokenizer():
    return fill_module(build_tokenizer(FSQ)).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", [[8, 8], [4, 4, 4]])
def test_the_same_images_as_longer_rows_of_smaller_tokens(tokenizer, images, sizes):
    view, tokens = SubTokenView(tokenizer=tokenizer, factors=sizes), tokenizer.encode(images)
    parts = view.encode(images)
    assert view.num_tokens == 6 * len(sizes) and view.codebook_size == sizes[0] and view.is_discrete
    assert view.bits_per_image == tokenizer.bits_per_image and view.image_size == 16
    assert parts.shape == (3, view.num_tokens) and int(parts.max()) < sizes[0]
    for digit in range(len(sizes)):  # index t * G + g is the g-th digit of token t
        expected = tokens // sizes[0] ** digit % sizes[0]
        assert torch.equal(parts[:, digit :: len(sizes)], expected)
    assert torch.equal(view.join(parts), tokens)
    assert torch.equal(decode(view, parts), decode(tokenizer, tokens))
    assert torch.equal(reconstruct(view, images), reconstruct(tokenizer, images))
    result, known = view(images), tokenizer(images)
    assert torch.equal(result.tokens, parts) and torch.equal(result.reconstructions, known.reconstructions)


def test_it_is_the_same_tokenizer_to_those_who_ask_for_weights(tokenizer, images, tmp_path):
    view = SubTokenView(tokenizer=tokenizer, factors=[8, 8])
    assert (
        weight_hash(view) == weight_hash(tokenizer)
        and view.state_dict().keys() == tokenizer.state_dict().keys()
    )
    assert not view.training and len(list(view.parameters())) == len(list(tokenizer.parameters()))
    saved = from_pretrained(save_pretrained(view, tmp_path))
    assert type(saved) is type(tokenizer) and torch.equal(saved.encode(images), tokenizer.encode(images))
    other = SubTokenView(tokenizer=build_tokenizer(FSQ), factors=[8, 8])
    assert weight_hash(other) != weight_hash(view)
    other.load_state_dict(view.state_dict())
    assert weight_hash(other) == weight_hash(view)


def test_what_does_not_fit_is_refused(tokenizer):
    for sizes, message in [
        ([8, 4], r"factors=\[8, 4\] must be two or more equal sizes"),
        ([64], "two or more"),
        ([4, 4], "factors 4 x 4 make 16 tokens, but the codebook has 64"),
        ([], "each at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            SubTokenView(tokenizer=tokenizer, factors=sizes)
    continuous = build_tokenizer(TOKENIZER | {"quantizer": {"name": "vae", "code_dim": 4}})
    with pytest.raises(ValueError, match="continuous"):
        SubTokenView(tokenizer=continuous, factors=[8, 8])
    with pytest.raises(ValueError, match="13 sub-tokens are not a multiple of 2"):
        SubTokenView(tokenizer=tokenizer, factors=[8, 8]).join(torch.zeros(1, 13, dtype=torch.int64))


@pytest.mark.parametrize(
    ("codebook_size", "sizes"),
    [(2**18, [512, 512]), (64000, [40, 40, 40]), (2**36, [4096] * 3), (10**10, [100] * 5), (2**17 + 1, None)],
)
def test_suggested_sizes(codebook_size, sizes):
    found = suggest_factors(codebook_size)
    assert found == sizes
    if found:
        assert equal_factors(found).codebook_size == codebook_size
