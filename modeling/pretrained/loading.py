"""Load trained models: tokenizers, generators, and a generator together with its tokenizer."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.build import ConfigError
from modeling.factory import build_generator, build_tokenizer
from modeling.generators.base import Generator
from modeling.pretrained.llamagen import adapt_llama, adapt_llamagen
from modeling.pretrained.magvit2_formats import MAGVIT2_FORMATS
from modeling.pretrained.model_names import ModelName, open_model
from modeling.pretrained.nested_files import read_nested_weights
from modeling.pretrained.run_folder import ModelFiles
from modeling.pretrained.vqgan_formats import VQGAN_FORMATS
from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.sub_tokens import SubTokenView
from storage.weights import CheckpointError, load_weights, read_weights, weight_hash

Config = str | Path | Mapping[str, Any] | None
BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "tokenizer": build_tokenizer,
    "generator": build_generator,
}


def load_tokenizer(name: ModelName, device: torch.device | str = "cpu", config: Config = None) -> Tokenizer:
    """A trained tokenizer in eval mode and without gradient.

    Args:
        name: a name such as "titok-l32", a run or checkpoint folder, a weight file, a Hub repository, ...: see
            `modeling.pretrained.model_names`.
        config: configuration of a weight file that has none beside it, of ours or of the original project.

    Raises:
        OSError: the folder, its configuration or its weights do not exist, or cannot be downloaded.
        ValueError: it holds another kind of model, or weights that are damaged or do not fit.
    """
    return _load(open_model(name, "tokenizer", config), "tokenizer", device)


def load_generator(name: ModelName, device: torch.device | str = "cpu", config: Config = None) -> Generator:
    """A trained generator in eval mode and without gradient; arguments and errors as `load_tokenizer`."""
    return _load(open_model(name, "generator", config), "generator", device)


def load_files(files: ModelFiles, device: torch.device | str = "cpu") -> nn.Module:
    """The tokenizer or generator, whichever it is, that `open_model` found; errors as `load_tokenizer`."""
    return _load(files, files.kind, device)


def _load(files: ModelFiles, kind: str, device: torch.device | str) -> Any:
    section = files.section(kind)
    module = _allocate(BUILDERS[kind], section)
    written = files.format or files.config.get("format")
    read: Callable[[Any], dict[str, torch.Tensor]] = read_weights
    if written is not None:
        if not isinstance(written, str) or written not in FORMATS:
            raise ConfigError(f"{files.name}: format={written!r} is unknown; choose {', '.join(FORMATS)}")
        read = partial(_read_foreign, translate=FORMATS[written], section=section)
    load_weights(files.weights, module, files.drop, read)
    return module.to(device).eval().requires_grad_(False)


# How weight files of other projects are read: their entries under our names. Keyword arguments are options of the
# model's section.
FORMATS = {**VQGAN_FORMATS, **MAGVIT2_FORMATS, "llamagen_gpt": adapt_llamagen, "llama": adapt_llama}


def _read_foreign(
    path: str | Path, translate: Callable[..., dict[str, torch.Tensor]], section: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    state = read_nested_weights(path)
    parameters = inspect.signature(translate).parameters.values()
    options = {p.name: section[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        return translate(state, **options)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _allocate(build: Callable[[Mapping[str, Any]], nn.Module], section: Mapping[str, Any]) -> nn.Module:
    """A module whose values are about to be loaded: drawing random ones for a billion parameters takes a minute."""
    with torch.device("meta"):
        module = build(section)
    if any(part._non_persistent_buffers_set for part in module.modules()):
        return build(section)  # files do not hold these, so they must be computed
    return module.to_empty(device="cpu")


@dataclass(frozen=True)
class ImageModel:
    """A generator with the tokenizer that turns its tokens into images.

    Attributes:
        tokenizer: of whole tokens, or the view that joins a generator's sub-tokens (`SubTokenView`).
        class_names: name of every label.
        sampling: settings that the generator's run suggests or its authors published, keywords of `generate`; empty if
            there are none.
    """

    generator: Generator
    tokenizer: Tokenizer
    class_names: list[str]
    sampling: dict[str, Any]


def load_image_model(
    generator: ModelName,
    tokenizer: ModelName | None = None,
    device: torch.device | str = "cpu",
    config: Config = None,
) -> ImageModel:
    """Load a generator and its tokenizer, and make sure that they belong together.

    Args:
        generator: see `load_tokenizer`.
        tokenizer: likewise; None is the one that belongs to the generator: what its run names, or what was released
            with it.
        config: configuration of a generator's weight file that has none beside it.

    Raises:
        OSError, ValueError: as `load_tokenizer`; ValueError also if the generator learned the tokens of
            another tokenizer.
    """
    files = open_model(generator, "generator", config)
    files.section("generator")
    origin = files.config.get("tokens") or {}
    named = tokenizer or origin.get("tokenizer")
    if named is None:
        raise ValueError(
            f"{files.name} does not say which tokenizer it learned from; name it by tokenizer=FOLDER"
        )
    # The generator may be large: everything else is found and loaded before.
    tokenizer_files = open_model(named, "tokenizer")
    loaded = _load(tokenizer_files, "tokenizer", device)
    made_by = origin.get("weight_hash")
    if made_by:
        require_tokenizer(
            loaded, made_by, what=f"generator {files.name}", tokenizer_name=tokenizer_files.name
        )
    factors = origin.get("factors") or (files.config.get("data") or {}).get("factors")
    if factors:
        loaded = _view(loaded, factors, files.name)
    module = _load(files, "generator", device)
    if (module.codebook_size, module.num_tokens) != (loaded.codebook_size, loaded.num_tokens):
        raise CheckpointError(
            f"generator {files.name} makes {module.num_tokens} tokens of {module.codebook_size} codes, but tokenizer"
            f" {tokenizer_files.name} has {loaded.num_tokens} of {loaded.codebook_size}"
        )
    names = [str(name) for name in origin.get("class_names") or range(module.num_classes)]
    return ImageModel(module, loaded, names, dict(files.config.get("sampling") or {}))


def _view(tokenizer: Tokenizer, factors: Sequence[int], name: str) -> SubTokenView:
    try:
        return SubTokenView(tokenizer=tokenizer, factors=factors)
    except ValueError as error:
        raise CheckpointError(f"generator {name} learned sub-tokens that do not fit: {error}") from error


def require_tokenizer(tokenizer: Tokenizer, made_by: str, *, what: str, tokenizer_name: str) -> None:
    """Refuse tokens that another tokenizer made.

    Args:
        made_by: `weight_hash` of the tokenizer that made the tokens; empty if nobody knows, then nothing is refused.
        what: whose tokens these are, for the message.

    Raises:
        CheckpointError: the hashes differ.
    """
    own = weight_hash(tokenizer) if made_by else ""
    if own != made_by:
        raise CheckpointError(
            f"{what} belongs to tokens of another tokenizer (weights {made_by}) than {tokenizer_name} (weights {own})"
        )
