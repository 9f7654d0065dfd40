"""What the catalog knows of a model with published weights, and the names of the ImageNet classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

CLASS_FILE = Path(__file__).with_name("imagenet_classes.txt")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A model that `load_tokenizer`, `load_generator` or `load_image_model` finds by its name.

    Attributes:
        name: its name here.
        kind: "tokenizer" or "generator".
        licence: of the weights.
        tokens: tokens (continuous: latent vectors) per image.
        bits_per_image: tokens times log2 of the codebook size; None if continuous.
        parameters: entries of the state dict, in numbers.
        metrics: published results. Tokenizers: rfid, inception_score, psnr (dB), ssim, lpips of reconstructions of the
            ImageNet validation set at the tokenizer's size, codebook_usage (a share) there. Generators: gfid,
            inception_score, precision, recall of 50,000 samples of 256 x 256 pixels.
        section: our `tokenizer` or `generator` section; empty for a model in `folder`, which has it in its config.yaml.
        sampling: published settings of a generator's sampler.
        tokenizer: name of the tokenizer whose tokens a generator makes.
        repo, file: Hub repository and file of the plain state dict.
        hub_repo: Hub repository with config.json and model.safetensors, if there is one.
        manifest: name of the list of state-dict entries that the tests compare with.
        format: key of `loading.FORMATS` for a file whose entries have other names than ours, or that holds more
            than weights; `manifest` lists the names of the file.
        origin: where people get a file that is in no Hub repository.
        folder: run folder of a model that comes with this repository.
    """

    name: str
    kind: str
    licence: str
    tokens: int
    bits_per_image: float | None
    parameters: int
    metrics: Mapping[str, float]
    section: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    repo: str | None = None
    file: str | None = None
    hub_repo: str | None = None
    manifest: str | None = None
    format: str | None = None
    origin: str | None = None
    folder: str | None = None

    @property
    def sources(self) -> list[tuple[str, str]]:
        """(Hub repository, file) where the weights lie, the safer format first."""
        places = [(self.hub_repo, "model.safetensors"), (self.repo, self.file)]
        return [(repo, file) for repo, file in places if repo and file]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as a run folder would have it."""
        if self.kind == "tokenizer":
            return {"tokenizer": dict(self.section)}
        origin = {"tokenizer": self.tokenizer, "class_names": imagenet_classes()}
        return {"generator": dict(self.section), "sampling": dict(self.sampling), "tokens": origin}


@cache
def _imagenet_classes() -> tuple[str, ...]:
    return tuple(CLASS_FILE.read_text().splitlines())


def imagenet_classes() -> list[str]:
    """Short English names of the 1000 ImageNet classes in the order of the labels (sorted synsets)."""
    return list(_imagenet_classes())
