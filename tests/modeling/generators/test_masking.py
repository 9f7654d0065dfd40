import math

import pytest
import torch

from modeling.generators.masking import mask_counts, mask_ratio, sample_masks
from tests.parity import assert_close, golden


def test_ratio_equals_reference():
    arrays = golden("generator_functions")
    assert_close(mask_ratio(torch.from_numpy(arrays["mask_t"])), arrays["mask_ratio_arccos"], atol=1e-6)


@pytest.mark.parametrize("num_tokens", [32, 64, 128, 256])
def test_counts_equal_reference(num_tokens):
    arrays = golden("generator_functions")
    counts = mask_counts(torch.from_numpy(arrays["mask_t"]), num_tokens)
    assert counts.dtype == torch.int64
    assert counts.tolist() == arrays[f"mask_count_N{num_tokens}"].tolist()
    assert counts[0] == num_tokens and counts[-1] == 1


def test_masks_have_the_right_size_and_cover_all_places_evenly():
    generator = torch.Generator().manual_seed(0)
    uniform, noise = torch.rand(4000, generator=generator), torch.rand(4000, 16, generator=generator)
    masks = sample_masks(uniform, noise)
    assert masks.dtype == torch.bool
    assert torch.equal(masks.sum(1), mask_counts(uniform, 16))
    torch.testing.assert_close(masks.float().mean(0), torch.full((16,), 2 / math.pi), atol=0.03, rtol=0)


def test_masks_of_one_size_are_independent_of_each_other():
    """Two places of 8 are hidden together as often as chance says: 4/8 * 3/7."""
    noise = torch.rand(8000, 8, generator=torch.Generator().manual_seed(0))
    masks = sample_masks(torch.full((8000,), math.cos(math.pi / 4)), noise).float()
    pairs = (masks.T @ masks / 8000)[~torch.eye(8, dtype=torch.bool)]
    torch.testing.assert_close(pairs, torch.full((56,), 4 / 8 * 3 / 7), atol=0.025, rtol=0)


def test_a_mask_depends_on_its_own_numbers_alone():
    generator = torch.Generator().manual_seed(0)
    uniform, noise = torch.rand(6, generator=generator), torch.rand(6, 16, generator=generator)
    apart = torch.cat([sample_masks(uniform[i : i + 1], noise[i : i + 1]) for i in range(6)])
    assert torch.equal(apart, sample_masks(uniform, noise))
