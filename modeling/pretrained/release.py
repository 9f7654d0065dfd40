"""What the catalog knows of a model with published weights, and the names of the ImageNet classes."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CLASS_FILE = Path(__file__).with_name("imagenet_classes.txt")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A model that `load_tokenizer`, `load_generator` or `load_image_model` finds by its name."""

    name: str
    kind: str  # "tokenizer" or "generator"
    licence: str  # of the weights
    tokens: int  # per image; latent vectors if continuous
    bits_per_image: float | None  # tokens times log2 of the codebook size; None if continuous
    parameters: int  # numbers in the state dict
    # Published results. Tokenizers, on the ImageNet validation set at their own size: rfid, inception_score, psnr (dB),
    # ssim, lpips, codebook_usage (a share). Generators, on 50,000 samples of 256 x 256: gfid, inception_score,
    # precision, recall.
    metrics: Mapping[str, float]
    section: Mapping[str, Any] = field(default_factory=dict)  # empty for a model in `folder`
    sampling: Mapping[str, Any] = field(default_factory=dict)  # published settings of a generator's sampler
    tokenizer: str | None = None  # name of the tokenizer whose tokens a generator predicts
    repo: str | None = None  # Hub repository of `file`
    file: str | None = None  # weight file as published
    mark: str | None = None  # an entry of it that other published files of this name lack
    hub_repo: str | None = None  # Hub repository with config.json and model.safetensors
    manifest: str | None = None  # list of the file's entries in tests/manifests
    format: str | None = None  # key of `loading.FORMATS`; None: a plain state dict under our names
    origin: str | None = None  # where to get a file that is in no Hub repository
    url: str | None = None  # its address
    folder: str | None = None  # run folder of a model that comes with this repository

    @property
    def sources(self) -> list[tuple[str, str]]:
        """(Hub repository, file) pairs that hold the weights, the safer format first."""
        places = [(self.hub_repo, "model.safetensors"), (self.repo, self.file)]
        return [(repo, file) for repo, file in places if repo and file]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as a run folder would have it."""
        if self.kind == "tokenizer":
            return {"tokenizer": dict(self.section)}
        origin = {"tokenizer": self.tokenizer, "class_names": imagenet_classes()}
        return {"generator": dict(self.section), "sampling": dict(self.sampling), "tokens": origin}


def entry(kind: str, name: str, tokens: int, codes: int | None, **about: Any) -> Release:
    """A release with its bits per image; `codes` is the codebook size, None if continuous."""
    bits = None if codes is None else tokens * math.log2(codes)
    return Release(kind=kind, name=name, tokens=tokens, bits_per_image=bits, **about)


def vq_section(codes: int, channels: int, unit: bool) -> dict[str, Any]:
    """The `quantizer` section of a released VQ codebook; `unit`: codes and latents are l2-normalised."""
    section = {"name": "vq", "codebook_size": codes, "code_dim": channels, "commitment_cost": 0.25}
    return section | {"use_l2_norm": unit, "online_clustering": False}


def unfiltered(scale: Any, temperature: Any = 1.0) -> dict[str, Any]:
    """Sampler settings with constant guidance that cut off no code; lists hold one value per sub-token."""
    guidance = {"guidance_scale": scale, "guidance_power": 0.0}
    return guidance | {"temperature": temperature, "top_k": 0, "top_p": 1.0}


@cache
def _imagenet_classes() -> tuple[str, ...]:
    return tuple(CLASS_FILE.read_text("utf-8").splitlines())


def imagenet_classes() -> list[str]:
    """Short English names of the 1000 ImageNet classes in the order of the labels (sorted synsets)."""
    return list(_imagenet_classes())  # a copy: callers may change it


def english_names(names: Sequence[str]) -> list[str]:
    """Class names as people say them: synsets (n01440764) and a thousand numbers are taken to be ImageNet's."""
    numbers = {name: int(name) for name in names if name.isdecimal()}
    if sorted(numbers.values()) == list(
        range(1000)
    ):  # sorted folders are 0, 1, 10, 100, ...: not in their order
        every = imagenet_classes()
        return [every[numbers[name]] for name in names]
    if names and all(re.fullmatch(r"n\d{8}", name) for name in names):
        known = dict(zip(_imagenet_synsets(), imagenet_classes(), strict=True))
        return [known.get(name, name) for name in names]
    return list(names)


@cache
def _imagenet_synsets() -> tuple[str, ...]:
    from timm.data import ImageNetInfo  # slow to import

    return tuple(ImageNetInfo().label_names())
