import numpy as np
import pytest
import torch

from evaluator.resize import resize_tf1, resize_tf1_rows, tf1_positions
from tests.parity import golden


def naive(image: np.ndarray, size: int) -> np.ndarray:
    """One channel, pixel by pixel, as the formula is written down."""
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * image.shape[0] / size, j * image.shape[1] / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            wy, wx = y - top, x - left
            upper = (1 - wx) * image[top, left] + wx * image[top, right]
            lower = (1 - wx) * image[bottom, left] + wx * image[bottom, right]
            result[i, j] = (1 - wy) * upper + wy * lower
    return result


@pytest.mark.parametrize("index", range(6))
def test_tensorflow_to_the_last_bit(index):
    arrays = golden("inception_features")
    image, expected = arrays[f"image_{index}"], torch.from_numpy(arrays[f"resized_{index}"])
    exact = resize_tf1(torch.from_numpy(image).permute(2, 0, 1)[None], 299)
    assert exact.shape == (1, 3, 299, 299) and exact.dtype == torch.float32
    assert torch.equal(exact[0, :, ::13, ::13].permute(1, 2, 0), expected)
    rows = resize_tf1_rows(torch.from_numpy(image)[None].float(), 299)
    torch.testing.assert_close(rows[0, ::13, ::13], expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("shape", [(7, 5), (5, 13), (1, 4), (30, 1)])
def test_formula_of_both_axes(shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float64)
    batch = torch.from_numpy(image)[None, None]
    for dtype, atol in (
        (torch.float64, 1e-4),
        (torch.float32, 1e-3),
    ):  # the scale itself is rounded to float32
        resized = resize_tf1(batch, 11, dtype=dtype)
        assert resized.dtype == dtype
        np.testing.assert_allclose(resized[0, 0], naive(image, 11), atol=atol)
    rows = resize_tf1_rows(batch.permute(0, 2, 3, 1).float().contiguous(), 11)
    np.testing.assert_allclose(rows[0, :, :, 0], naive(image, 11), atol=1e-3)


def test_wanted_size_passes_unchanged():
    image = torch.arange(2 * 3 * 9 * 9, dtype=torch.int64).remainder(256).view(2, 3, 9, 9).to(torch.uint8)
    assert torch.equal(resize_tf1(image, 9), image.float())
    rows = image.permute(0, 2, 3, 1).float()
    assert torch.equal(resize_tf1_rows(rows, 9), rows)


@pytest.mark.parametrize("length", [1, 2, 31, 64, 256, 299, 512, 1023, 4096])
def test_nothing_is_read_beyond_the_end(length):
    low, high, weight = tf1_positions(length, 299)
    assert low.min() == 0 and high.max() <= length - 1
    assert ((high == low + 1) | (high == length - 1)).all()
    assert (weight >= 0).all() and (weight < 1).all()


def test_wrong_shapes_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"shape \[3, 4, 4\]"):
        resize_tf1(torch.zeros(3, 4, 4), 8)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 0, 4\]"):
        resize_tf1(torch.zeros(1, 3, 0, 4), 8)
    with pytest.raises(ValueError, match="size is 0"):
        resize_tf1(torch.zeros(1, 3, 4, 4), 0)
