"""Helpers for tests that compare with numbers and layouts of the released systems.

Weights are never stored: `fill_module` makes deterministic ones from state-dict names and shapes, the
reference was run on the same values, and its outputs are the golden arrays in `tests/goldens`.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).parent
M = TypeVar("M", bound=nn.Module)


def golden(name: str) -> dict[str, np.ndarray]:
    """Arrays of `tests/goldens/<name>.npz`."""
    with np.load(ROOT / "goldens" / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def golden_json(name: str) -> dict:
    """Content of `tests/goldens/<name>.json`."""
    return json.loads((ROOT / "goldens" / f"{name}.json").read_text())


def manifest(name: str) -> dict[str, list]:
    """{state-dict name: [shape, dtype]} of a released model, in state-dict order."""
    return json.loads((ROOT / "manifests" / f"{name}.json").read_text())


def state_layout(module: nn.Module) -> dict[str, list]:
    """Names, shapes and dtypes of a module's state dict in the form of a manifest."""
    return {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in module.state_dict().items()
    }


def assert_layout(module: nn.Module, name: str) -> None:
    """Fail unless the state dict has the names, shapes, dtypes and order of manifest `name`."""
    assert list(state_layout(module).items()) == list(manifest(name).items())


def fill_values(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Deterministic values for the state-dict entry `name`, with the shape and dtype of `tensor`, on the CPU.

    Standard normal draws seeded by the CRC-32 of the name, scaled by what the entry is.
    """
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor) if name.endswith("num_batches_tracked") else tensor.clone()
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    draws = torch.from_numpy(np.asarray(generator.standard_normal(tuple(tensor.shape), dtype=np.float32)))
    if name.endswith("running_var"):
        draws = 1.0 + 0.1 * draws.abs()
    elif name.endswith("running_mean"):
        draws = 0.02 * draws
    elif tensor.ndim >= 2:
        draws = draws / max(int(np.prod(tensor.shape[1:])), 1) ** 0.5
    elif name.endswith("weight"):
        draws = 1.0 + 0.1 * draws
    else:
        draws = 0.02 * draws
    return draws.to(tensor.dtype)


@torch.no_grad()
def fill_module(module: M, skip: tuple[str, ...] = ()) -> M:
    """Overwrite every state-dict entry with `fill_values`, except names that start with one of `skip`.

    Of a tensor that is tied under two names the later name counts.
    """
    for name, tensor in module.state_dict().items():
        if not name.startswith(skip):
            tensor.copy_(fill_values(name, tensor))
    return module


def filled(build: Callable[[], M], skip: tuple[str, ...] = ()) -> M:
    """Build a module without drawing its random initial values, fill it and put it in eval mode.

    Entries under `skip` and non-persistent buffers would stay undefined, so such a module is built in full.
    """
    if skip:
        return fill_module(build(), skip).eval()
    with torch.device("meta"):
        module = build()
    return fill_module(module.to_empty(device="cpu")).eval()


def assert_close(actual: torch.Tensor, expected: np.ndarray, *, atol: float, rtol: float = 0.0) -> None:
    """Compare a tensor with a golden array of the same shape, in float64, naming the largest difference."""
    reference = torch.from_numpy(np.asarray(expected)).double()
    value = actual.detach().cpu().double()
    assert value.shape == reference.shape, f"shape {tuple(value.shape)} instead of {tuple(reference.shape)}"
    torch.testing.assert_close(value, reference, atol=atol, rtol=rtol)


def image_pair(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """Two images [2, 3, H, W] in [0, 1] from `image_u8`: the image, and the inverted mirror image of it."""
    image = torch.from_numpy(arrays["image_u8"]).permute(2, 0, 1).float()[None] / 255.0
    return torch.cat([image, 1.0 - image.flip(-1)])


def assert_images_close(
    images: torch.Tensor, arrays: dict[str, np.ndarray], name: str, *, atol: float
) -> None:
    """Compare images with whatever was stored of them: every 4th pixel, the central 32x32 crop, mean and std.

    Random weights make the two images of a pair nearly equal, so their difference is compared too.
    """
    top, left = images.shape[-2] // 2 - 16, images.shape[-1] // 2 - 16
    views = {
        "every4": images[:, :, ::4, ::4],
        "crop32": images[:, :, top : top + 32, left : left + 32],
        "mean": images.mean(dim=(2, 3)),
        "std": images.std(dim=(2, 3), correction=0),
    }
    stored = {kind: view for kind, view in views.items() if f"{name}_{kind}" in arrays}
    assert stored, f"nothing is stored under {name}_*"
    for kind, view in stored.items():
        expected = arrays[f"{name}_{kind}"]
        assert_close(view, expected, atol=atol)
        assert_close(view[0] - view[1], expected[0] - expected[1], atol=atol)


def assert_tokens_match(tokens: torch.Tensor, expected: np.ndarray, margin: np.ndarray) -> None:
    """Tokens must agree wherever the decision was clear (margin above 1e-4), and in 99 % of all places."""
    same = tokens.cpu().numpy().reshape(margin.shape) == expected.reshape(margin.shape)
    assert same[margin > 1e-4].all()
    assert same.mean() >= 0.99
