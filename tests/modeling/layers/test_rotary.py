import numpy as np
import pytest
import torch

from modeling.layers.rotary import class_rotation, grid_rotation, sequence_rotation
from tests.parity import assert_close, golden


def test_grid_table_equals_reference():
    table = golden("ut_llamagen_gpt_b")["rope_table"]
    rotation = grid_rotation(16, 64, prefix=1)
    assert_close(rotation.cos, table[..., 0], atol=1e-6)
    assert_close(rotation.sin, table[..., 1], atol=1e-6)


def test_magvit2_table_and_turn_equal_reference():
    expected = golden("magvit2_misc")
    rotation = class_rotation(256, 64, rope="2d", zero=True, device="cpu")
    assert_close(rotation.cos, expected["rope_full_16_64"][..., 0], atol=1e-6)
    assert_close(rotation.sin, expected["rope_full_16_64"][..., 1], atol=1e-6)
    for row, x, y in zip(expected["rope_rows"], expected["rope_x"], expected["rope_y"], strict=True):
        assert_close(rotation.at(int(row))(torch.from_numpy(x)), y, atol=1e-5)


@pytest.mark.parametrize("rope", ["1d", "2d"])
def test_the_class_vanishes_or_stays(rope):
    x = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    zero, identity = (class_rotation(9, 8, rope=rope, zero=zero, device="cpu")(x) for zero in (True, False))
    assert not zero[0].any() and torch.equal(identity[0], x[0])
    assert torch.equal(zero[1:], identity[1:])
    plain = sequence_rotation(10, 8)(x)[1:] if rope == "1d" else grid_rotation(3, 8)(x[1:])
    assert torch.equal(zero[1:], plain)


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
