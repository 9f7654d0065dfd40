import numpy as np
import pytest
import torch

from modeling.layers.rotary import grid_rotation, sequence_rotation
from tests.parity import assert_close, golden


def test_grid_table_equals_reference():
    table = golden("ut_llamagen_gpt_b")["rope_table"]
    rotation = grid_rotation(16, 64, prefix=1)
    assert_close(rotation.cos, table[..., 0], atol=1e-6)
    assert_close(rotation.sin, table[..., 1], atol=1e-6)


def naive(x: np.ndarray, pairs: list[tuple[int, int]], angles: list[float]) -> np.ndarray:
    """One head at one place, as complex numbers."""
    turned = np.empty_like(x)
    for (a, b), angle in zip(pairs, angles, strict=True):
        z = (x[a] + 1j * x[b]) * np.exp(1j * angle)
        turned[a], turned[b] = z.real, z.imag
    return turned


def test_sequence_turns_halves():
    x = np.random.default_rng(0).standard_normal((5, 8))
    turned = sequence_rotation(5, 8)(torch.from_numpy(x))
    for place in range(5):
        angles = [place * 10_000 ** (-j / 4) for j in range(4)]
        expected = naive(x[place], [(j, j + 4) for j in range(4)], angles)
        assert_close(turned[place], expected, atol=1e-5)


def test_grid_turns_neighbours_by_row_and_column():
    x = np.random.default_rng(0).standard_normal((9, 8))
    turned = grid_rotation(3, 8)(torch.from_numpy(x))
    for place in range(9):
        row, column = divmod(place, 3)
        angles = [row, row / 100, column, column / 100]
        expected = naive(x[place], [(2 * j, 2 * j + 1) for j in range(4)], angles)
        assert_close(turned[place], expected, atol=1e-5)


@pytest.mark.parametrize("rotation", [sequence_rotation(9, 8), grid_rotation(3, 8)])
def test_one_place_alone(rotation):
    x = torch.randn(2, 4, 9, 8, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    together = rotation(x)
    assert together.dtype == torch.float32 and together.shape == x.shape
    assert torch.equal(rotation.at(7)(x[:, :, 7]), together[:, :, 7])


def test_a_prefix_is_zero():
    rotation = grid_rotation(2, 8, prefix=1)
    turned = rotation(torch.ones(5, 8))
    assert not turned[0].any()
    assert torch.equal(turned[1:], grid_rotation(2, 8)(torch.ones(4, 8)))


def test_bad_widths_are_named():
    with pytest.raises(ValueError, match="head_dim=7 must be a multiple of 2"):
        sequence_rotation(4, 7)
    with pytest.raises(ValueError, match="head_dim=6 must be a multiple of 4"):
        grid_rotation(2, 6)
