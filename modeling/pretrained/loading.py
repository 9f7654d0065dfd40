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
from common.choices import Precision
from modeling.factory import build_generator, build_tokenizer
from modeling.generators.base import Generator
from modeling.layers.half import PRECISIONS
from modeling.pretrained.llamagen import adapt_llama, adapt_llamagen
from modeling.pretrained.magvit2_formats import MAGVIT2_FORMATS
from modeling.pretrained.model_names import ModelName, open_model
from modeling.pretrained.nested_files import read_nested_weights
from modeling.pretrained.run_folder import ModelFiles
from modeling.pretrained.vqgan_formats import VQGAN_FORMATS
from modeling.sampling.draw import settings_for
from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.sub_tokens import SubTokenView
from storage.weights import CheckpointError, load_weights, read_weights, weight_hash

Config = str | Path | Mapping[str, Any] | None
BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "tokenizer": build_tokenizer,
    "generator": build_generator,
}


def load_tokenizer(
    name: ModelName,
    device: torch.device | str = "cpu",
    config: Config = None,
    precision: Precision = "float32",
) -> Tokenizer:
    """A trained tokenizer in eval mode, without gradients.

    Args:
        name: "titok-l32", a run or checkpoint folder, a weight file, a Hub repository, ...: all ways are listed in
            `modeling.pretrained.model_names`.
        config: configuration, ours or the original's, of a weight file that has none beside it.
        precision: of weights and computation (`modeling.layers.half`); images and the choice of codes stay float32.

    Raises:
        OSError: the folder, its configuration or its weights do not exist or cannot be downloaded.
        ValueError: the name is another kind of model, or its weights are damaged or do not fit; an unknown precision.
    """
    return _cast(_load(open_model(name, "tokenizer", config), "tokenizer", device), precision)


def load_generator(
    name: ModelName,
    device: torch.device | str = "cpu",
    config: Config = None,
    precision: Precision = "float32",
) -> Generator:
    """A trained generator in eval mode, without gradients; arguments and errors as `load_tokenizer`.

    Its attribute `sampling` has the settings of its run or release, which drawing starts from.
    """
    return _cast(_load(open_model(name, "generator", config), "generator", device), precision)


def load_files(files: ModelFiles, device: torch.device | str = "cpu") -> nn.Module:
    """The tokenizer or generator that `open_model` found; errors as `load_tokenizer`."""
    return _load(files, files.kind, device)


def _load(files: ModelFiles, kind: str, device: torch.device | str) -> Any:
    section = files.section(kind)
    module = _allocate(BUILDERS[kind], section)  # wrong options are reported before a large file is read
    written = files.format or files.config.get("format")
    read: Callable[[Any], dict[str, torch.Tensor]] = read_weights
    if written is not None:
        if not isinstance(written, str) or written not in FORMATS:
            raise ConfigError(f"{files.name}: format={written!r} is unknown; choose {', '.join(FORMATS)}")
        read = partial(_read_foreign, translate=FORMATS[written], section=section)
    if isinstance(module, Generator):
        module.sampling = _sampling(files, module)
    load_weights(files.weights, module, files.drop, read)
    return module.to(device).eval().requires_grad_(False)


def _sampling(files: ModelFiles, generator: Generator) -> dict[str, Any]:
    """The section `sampling` of a generator, checked before a large file is read."""
    section = files.config.get("sampling") or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{files.name}: sampling={section!r} has the wrong type; expected section")
    try:
        settings_for(generator, section)
    except ConfigError as error:
        raise ConfigError(f"{files.name}: {error}") from error
    return dict(section)


def _cast(module: Any, precision: Precision) -> Any:
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; choose {', '.join(PRECISIONS)}")
    if precision != "float32":
        module.loaded_hash = weight_hash(module)  # it is still the model that files are made by and for
        module.to(PRECISIONS[precision])
    return module


# Translations of other projects' state dicts to ours; their keyword arguments are options of the model's section.
FORMATS = {**VQGAN_FORMATS, **MAGVIT2_FORMATS, "llamagen_gpt": adapt_llamagen, "llama": adapt_llama}


def _read_foreign(
    path: str | Path, translate: Callable[..., dict[str, torch.Tensor]], section: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    state = read_nested_weights(path)
    parameters = inspect.signature(translate).parameters.values()
    options = {p.name: section[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}  # such as num_classes
    try:
        return translate(state, **options)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _allocate(build: Callable[[Mapping[str, Any]], nn.Module], section: Mapping[str, Any]) -> nn.Module:
    """A module with undefined values, to be loaded."""
    with torch.device("meta"):  # initialising a billion parameters takes a minute
        module = build(section)
    if any(part._non_persistent_buffers_set for part in module.modules()):
        # Files lack these buffers, so __init__ must compute them; the random numbers of the run stay where they are.
        with torch.random.fork_rng(devices=[]):
            return build(section)
    return module.to_empty(device="cpu")


@dataclass(frozen=True)
class ImageModel:
    """A generator with the tokenizer that turns its tokens into images."""

    generator: Generator
    tokenizer: Tokenizer  # a `SubTokenView` if the generator predicts sub-tokens
    class_names: list[str]  # by label

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings of the generator's run or release, which `generate` starts from; may be empty."""
        return dict(self.generator.sampling)


def load_image_model(
    generator: ModelName,
    tokenizer: ModelName | None = None,
    device: torch.device | str = "cpu",
    config: Config = None,
    precision: Precision = "float32",
) -> ImageModel:
    """Load a generator and its tokenizer, and check that they belong together.

    Models are named as in `load_tokenizer`, `config` describes the generator's weight file, and `precision` is that of
    both. `tokenizer` None is the one that the generator's run names or that was released with it.

    Raises:
        OSError, ValueError: as `load_tokenizer`; ValueError also if the generator learned another tokenizer's tokens.
    """
    files = open_model(generator, "generator", config)
    files.section("generator")
    origin = files.config.get("tokens") or {}  # written by training, or by the catalog
    named = tokenizer or origin.get("tokenizer")
    if named is None:
        raise ValueError(f"{files.name} does not say whose tokens it learned; set tokenizer=FOLDER")
    # The generator may be large: everything that can fail is found and loaded before it.
    tokenizer_files = open_model(named, "tokenizer")
    loaded = _load(tokenizer_files, "tokenizer", device)
    made_by = origin.get("weight_hash") or ""
    require_tokenizer(loaded, made_by, what=f"generator {files.name}", tokenizer_name=tokenizer_files.name)
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
    return ImageModel(_cast(module, precision), _cast(loaded, precision), names)


def _view(tokenizer: Tokenizer, factors: Sequence[int], name: str) -> SubTokenView:
    try:
        return SubTokenView(tokenizer=tokenizer, factors=factors)
    except ValueError as error:
        raise CheckpointError(f"generator {name} learned sub-tokens that do not fit: {error}") from error


def require_tokenizer(tokenizer: Tokenizer, made_by: str, *, what: str, tokenizer_name: str) -> None:
    """Raise CheckpointError if another tokenizer made the tokens of `what`.

    `made_by` is the `weight_hash` of the tokenizer that made them; empty if unknown, which passes.
    """
    own = weight_hash(tokenizer) if made_by else ""
    if own != made_by:
        raise CheckpointError(
            f"{what} belongs to tokens of another tokenizer (weights {made_by}) than {tokenizer_name} (weights {own})"
        )
