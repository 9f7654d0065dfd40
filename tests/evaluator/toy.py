"""A network of a few numbers in place of Inception and DINOv2, and the same images in every kind of file."""

import dataclasses
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from evaluator.image_stream import ImageStream, digest_lines
from evaluator.networks import NETWORKS


class MemoryImages(ImageStream):
    """A tensor uint8 [N, 3, H, W]."""

    def __init__(self, images: torch.Tensor):
        self._images, self.source = images, "memory"
        self.count, self.size = len(images), tuple(images.shape[2:])

    def images(self, positions):
        yield from (self._images[position] for position in positions)

    def digest(self):
        return digest_lines([str(self._images.tolist())])


def put_in_place(monkeypatch, name: str, network) -> None:
    """Load `network` wherever that of this name is needed."""
    monkeypatch.setitem(
        NETWORKS, name, dataclasses.replace(NETWORKS[name], load=lambda *_, **__: network, find=None)
    )


class ToyFeatures(NamedTuple):
    pool: torch.Tensor
    logits: torch.Tensor
    spatial: torch.Tensor


class ToyInception:
    """Fixed projections of coarse pixels; float32, so that rounding is as in earnest."""

    approximate = False
    dims = {"pool": 12, "logits": 9, "spatial": 7}

    def __init__(self, weights_hash: str = "toy"):
        self.weights_hash, self.calls = weights_hash, []
        draws = torch.Generator().manual_seed(0)
        self.pool, self.logits, self.spatial = (
            torch.randn(48, dim, generator=draws) / 7 for dim in self.dims.values()
        )

    def __call__(self, images: torch.Tensor) -> ToyFeatures:
        assert images.dtype == torch.uint8
        self.calls.append(len(images))
        coarse = F.adaptive_avg_pool2d(images.float() / 64, 4).flatten(1)
        return ToyFeatures(
            (coarse @ self.pool).relu(), 3 * coarse @ self.logits, (coarse @ self.spatial).relu()
        )


class ToyFloat:
    """As `ToyInception`, of float images in [0, 1]."""

    approximate = False
    weights_hash = "toy"
    dims = {"pool": ToyInception.dims["pool"]}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.is_floating_point()
        coarse = F.adaptive_avg_pool2d(images.float() * 255 / 64, 4).flatten(1)
        return (coarse @ ToyInception().pool).relu()


def toy_images(count: int, seed: int = 0, side: int = 16) -> np.ndarray:
    """uint8 [N, S, S, 3], coarse blocks under noise."""
    draws = np.random.default_rng(seed)
    blocks = draws.integers(0, 200, (count, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    return (blocks + draws.integers(0, 56, blocks.shape)).astype(np.uint8)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write_folder(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels):
        (folder / f"{i:06d}.png").write_bytes(png(image))
    return folder


def write_tars(pattern: Path, pixels: np.ndarray, shards: int = 2, labels: bool = False) -> str:
    """`shards` files named 0.tar, 1.tar ...; returns their brace pattern."""
    pattern.mkdir(parents=True, exist_ok=True)
    parts = np.array_split(np.arange(len(pixels)), shards)
    for number, part in enumerate(parts):
        with tarfile.open(pattern / f"{number}.tar", "w") as archive:
            for i in part:
                members = {f"{i:06d}.png": png(pixels[i])}
                if labels:
                    members[f"{i:06d}.cls"] = str(i // 3).encode()
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(pattern / f"{{0..{shards - 1}}}.tar")
