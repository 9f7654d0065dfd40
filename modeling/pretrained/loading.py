"""Load trained models: tokenizers, generators, and a generator together with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import find_file
from common.weights import CheckpointError, load_weights, weight_hash
from modeling.factory import build_generator, build_tokenizer
from modeling.generators.base import Generator
from modeling.pretrained.run_folder import RunFolder, open_run
from modeling.tokenizers.base import Tokenizer


def load_tokenizer(path: str | Path, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer of a run or checkpoint folder, in eval mode and without gradient.

    Raises:
        FileNotFoundError: the folder, its configuration or its weights do not exist.
        ValueError: it holds another kind of model, or weights that are damaged or do not fit.
    """
    run = open_run(path)
    tokenizer = build_tokenizer(run.section("tokenizer"))
    load_weights(run.weights, tokenizer)
    return _frozen(tokenizer, device)


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> Generator:
    """The generator of a run or checkpoint folder, in eval mode and without gradient; raises as `load_tokenizer`."""
    return _load_generator(open_run(path), device)


def _load_generator(run: RunFolder, device: torch.device | str) -> Generator:
    generator = build_generator(run.section("generator"))
    load_weights(run.weights, generator)
    return _frozen(generator, device)


def _frozen(module: nn.Module, device: torch.device | str) -> Any:
    return module.to(device).eval().requires_grad_(False)


@dataclass(frozen=True)
class ImageModel:
    """A generator with the tokenizer that turns its tokens into images.

    Attributes:
        class_names: name of every label.
        sampling: settings that the generator's run suggests, keywords of `generate`; empty if it suggests none.
    """

    generator: Generator
    tokenizer: Tokenizer
    class_names: list[str]
    sampling: dict[str, float]


def load_image_model(
    generator: str | Path, tokenizer: str | Path | None = None, device: torch.device | str = "cpu"
) -> ImageModel:
    """Load a generator and its tokenizer, and make sure that they belong together.

    Args:
        generator: run or checkpoint folder.
        tokenizer: run or checkpoint folder; None is the one that the generator's run names.

    Raises:
        FileNotFoundError, ValueError: as `load_tokenizer`; ValueError also if the generator learned the tokens of
            another tokenizer.
    """
    run = open_run(generator)
    run.section("generator")
    origin = run.config.get("tokens") or {}
    named = tokenizer or origin.get("tokenizer")
    if named is None:
        raise ValueError(
            f"{run.path} does not say which tokenizer it learned from; name it by tokenizer=FOLDER"
        )
    find_file(named, "tokenizer folder")  # before the generator, which may be large, is loaded
    loaded = load_tokenizer(named, device)
    made_by = origin.get("weight_hash")
    if made_by is not None:
        require_tokenizer(loaded, made_by, what=f"generator {run.path}", tokenizer_name=str(named))
    module = _load_generator(run, device)
    if (module.codebook_size, module.num_tokens) != (loaded.codebook_size, loaded.num_tokens):
        raise CheckpointError(
            f"generator {run.path} makes {module.num_tokens} tokens of {module.codebook_size} codes, but tokenizer"
            f" {named} has {loaded.num_tokens} of {loaded.codebook_size}"
        )
    names = [str(name) for name in origin.get("class_names") or range(module.num_classes)]
    return ImageModel(module, loaded, names, dict(run.config.get("sampling") or {}))


def require_tokenizer(tokenizer: Tokenizer, made_by: str, *, what: str, tokenizer_name: str) -> None:
    """Refuse tokens that another tokenizer made.

    Args:
        made_by: `weight_hash` of the tokenizer that made the tokens.
        what: whose tokens these are, for the message.

    Raises:
        CheckpointError: the hashes differ.
    """
    own = weight_hash(tokenizer)
    if own != made_by:
        raise CheckpointError(
            f"{what} belongs to tokens of another tokenizer (weights {made_by}) than {tokenizer_name} (weights {own})"
        )
