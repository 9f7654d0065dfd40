"""Tokens as sub-tokens: digits of a mixed base."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.token_factors import TokenFactors
from tests.parity import golden


class Operations(TorchDispatchMode):
    """Names of all operations that are run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sizes", [(64, 4096), (512, 512), (40, 40, 40), (7, 3, 5)])
def test_split_and_join_undo_each_other(sizes):
    factors = TokenFactors(sizes)
    tokens = torch.randint(factors.codebook_size, (2, 50), generator=torch.Generator().manual_seed(0))
    parts = factors.split(tokens)
    assert parts.shape == (2, 50, len(sizes)) and len(factors) == len(sizes)
    assert all(int(parts[..., g].max()) < size for g, size in enumerate(sizes))
    assert torch.equal(factors.join(parts), tokens)


def test_digits_are_those_of_numpy():
    sizes = (6, 4, 5)
    parts = TokenFactors(sizes).split(torch.arange(120)).numpy()
    # numpy counts the last digit fastest
    assert np.array_equal(np.stack(np.unravel_index(np.arange(120), sizes[::-1]), axis=-1)[:, ::-1], parts)


def test_low_and_high_bits_equal_the_published_split():
    known = golden("magvit2_tokenizer_256")
    for tag in "ab":
        parts = TokenFactors((64, 4096)).split(torch.from_numpy(known[f"{tag}_indices"]).long())
        assert np.array_equal(parts[..., 0], known[f"{tag}_indices_pre"])
        assert np.array_equal(parts[..., 1], known[f"{tag}_indices_post"])


def test_no_numbers_are_copied_to_the_device():
    """`torch.tensor(list, device=...)` makes the host wait for a GPU; training splits tokens at every step."""
    factors, tokens = TokenFactors((64, 4096)), torch.arange(8).view(2, 4)
    with Operations() as run:
        factors.join(factors.split(tokens))
    assert run.names and not {"aten::lift_fresh", "aten::_to_copy", "aten::copy_"} & set(run.names)


def test_sizes_that_make_no_sense_are_refused():
    for sizes in ((), (1, 64)):
        with pytest.raises(ValueError, match="each at least 2"):
            TokenFactors(sizes)
    with pytest.raises(ValueError, match="64 x 4096 make 262144 tokens, but the codebook has 1024"):
        TokenFactors((64, 4096)).check(1024)
