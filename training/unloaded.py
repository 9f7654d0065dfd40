"""The task of a run without weights and without data, on fake tensors: to count what training it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from common.build import ConfigError, check_options
from data.token_exchange import open_tokens
from modeling.factory import build_discriminator, build_generator, build_tokenizer
from modeling.losses.convnext import ConvNeXtDistance
from modeling.losses.lpips import LPIPS
from modeling.losses.perceptual import PerceptualLoss
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.teachers import build_teacher, load_teacher, network_section
from modeling.pretrained.text import TEXT_LENGTH, TextEncoder, build_text_tower
from modeling.token_factors import TokenFactors
from modeling.tokenizers.base import Tokenizer
from modeling.tokenizers.sub_tokens import SubTokenView
from training.settings import ExperimentSettings, OptimizerSettings, TrainingSettings
from training.task import Task
from training.tasks import GENERATOR_TASKS, TOKENIZER_TASKS
from training.tasks.tokenizer import TokenizerSetup
from training.tokenizer_settings import LearningSettings

Module = TypeVar("Module", bound=nn.Module)


class Run(Protocol):
    """A run of a tokenizer (then it has LearningSettings, training/tokenizer_run.py) or of a generator."""

    experiment: ExperimentSettings
    training: TrainingSettings  # settled: without `auto`


@dataclass(frozen=True)
class UnloadedTask:
    """A task whose tensors have no values, its frozen networks, and the examples that it learns from.

    Fake tensors belong to a mode: what uses them does so in `with unloaded.mode`.
    """

    mode: FakeTensorMode
    task: Task
    frozen: dict[str, nn.Module]  # by what they are for
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]  # of a batch without its first dimension
    tokens: int  # per example


def unloaded(run: Run) -> UnloadedTask:
    """The task of a run whose lengths are steps; reads no weights, of a token file only its header.

    Raises:
        ConfigError: the sizes of a generator's tokens are not known, or a network cannot be built.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return _tokenizer(run, mode) if isinstance(run, LearningSettings) else _generator(run, mode)


def _fake(build: Callable[..., Module], *args: Any, **options: Any) -> Module:
    """A module with fake tensors on the CPU."""
    # On the meta device: initial values may depend on others, of which fake tensors have none.
    with unset_fake_temporarily(), torch.device("meta"):
        module = build(*args, **options)
    made: dict[torch.Tensor, torch.Tensor] = {}  # a tensor that modules share stays shared
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    parameter = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
                if tensor is not None:
                    tensors[name] = made[tensor]
    return module


def _tokenizer(run: Any, mode: FakeTensorMode) -> UnloadedTask:
    tokenizer = _fake(build_tokenizer, run.tokenizer)
    for part in tokenizer.modules():  # what the host would read from the device once
        if getattr(part, "_updates", 0) is None:
            part._updates = 0
    kind, options, frozen = TOKENIZER_TASKS[tokenizer.learns], {}, {}
    kind.check(run, tokenizer)
    setup = TokenizerSetup(
        tokenizer=tokenizer, validation=None, losses=run.losses, optimizer=run.optimizer, batch_size=1
    )
    if tokenizer.learns == "pixels":
        options = _pixel_options(run, tokenizer)
        if options["perceptual"] is not None:
            frozen["perceptual networks"] = options["perceptual"]
        if options["text"] is not None:
            frozen["text encoder"] = options["text"]
    elif tokenizer.learns in ("features", "codebook"):
        section = check_options("teacher", load_teacher, network_section(run.teacher))
        options["teacher"] = frozen["teacher"] = _fake(build_teacher, **section)
    elif tokenizer.learns == "codes":
        options["teacher"] = frozen["teacher"] = _released(run.teacher, "teacher")
    else:
        raise ConfigError(f"the cost of tokenizers that learn {tokenizer.learns!r} cannot be counted yet")
    task = kind(setup, **options)
    size = tokenizer.image_size
    shapes = {"images": ((3, size, size), torch.float32), "labels": ((), torch.int64)}
    if tokenizer.needs_text:  # any captions do: they are padded to one length
        task.text_of = lambda batch, names: {"text": task.text.encode([""] * len(batch["images"]))}
    return UnloadedTask(mode, task, frozen, shapes, tokenizer.num_tokens)


def _pixel_options(run: LearningSettings, tokenizer: Tokenizer) -> dict:
    losses, perceptual, text = run.losses, None, None
    shares = losses.perceptual
    if losses.perceptual_weight:
        perceptual = PerceptualLoss(
            lpips=_fake(LPIPS) if shares.lpips_weight else None,
            convnext=_fake(ConvNeXtDistance) if shares.convnext_weight else None,
            lpips_weight=shares.lpips_weight,
            convnext_weight=shares.convnext_weight,
        )
    if tokenizer.needs_text:
        text = _fake(lambda: TextEncoder(tower=build_text_tower(), tokenize=_no_words))
    return {
        "discriminator": _fake(build_discriminator, run.discriminator) if run.discriminator else None,
        "perceptual": perceptual,
        "discriminator_optimizer": OptimizerSettings(),
        "text": text,
    }


def _no_words(captions: list[str]) -> torch.Tensor:
    return torch.zeros(len(captions), TEXT_LENGTH, dtype=torch.int64)


def _released(name: object, key: str) -> Tokenizer:
    """A tokenizer of the catalog, or of a section, without its weights."""
    section = RELEASES[name].section if isinstance(name, str) and name in RELEASES else name
    if not isinstance(section, dict):
        raise ConfigError(f"{key}={name!r} must be a name of the catalog or a section to count its cost")
    return _fake(build_tokenizer, {k: v for k, v in section.items() if k != "weights"})


def _generator(run: Any, mode: FakeTensorMode) -> UnloadedTask:
    sizes = {key: value for key, value in _sizes(run).items() if key not in run.generator}
    generator = _fake(build_generator, run.generator, **sizes)
    kind, key = GENERATOR_TASKS[generator.kind]
    shapes = {"tokens": ((generator.num_tokens,), torch.int64), "labels": ((), torch.int64)}
    tokenizer = None
    if run.data.images is not None:  # encoded in every step
        tokenizer = _released(run.data.tokenizer, "data.tokenizer").eval()
        size = tokenizer.image_size
        shapes["images"] = ((3, size, size), torch.float32)
        del shapes["tokens"]
        if run.data.factors is not None:
            tokenizer = SubTokenView(tokenizer=tokenizer, factors=run.data.factors)
    task = kind(
        generator=generator,
        validation=None,
        tokenizer=tokenizer,
        settings=getattr(run, key) or kind.default_settings(generator),
        sampling=None,
        optimizer=run.optimizer,
        seed=0,
        batch_size=1,
    )
    frozen = {} if tokenizer is None else {"tokenizer": tokenizer}
    return UnloadedTask(mode, task, frozen, shapes, generator.num_tokens)


def _sizes(run: Any) -> dict[str, int]:
    """What the section `generator` may leave out: from the token file, else from a released tokenizer."""
    data, wanted = run.data, ("codebook_size", "num_tokens", "num_classes")
    if all(key in run.generator for key in wanted):
        return {}
    try:
        tokens = open_tokens(Path(data.tokens)) if data.tokens else None
    except FileNotFoundError:
        tokens = None
    if tokens is not None:
        header = tokens.header
        sizes = {"codebook_size": header.codebook_size, "num_tokens": header.num_tokens}
        sizes["num_classes"] = len(header.class_names)
    elif isinstance(data.tokenizer, str) and data.tokenizer in RELEASES:
        tokenizer = _released(data.tokenizer, "data.tokenizer")
        sizes = {"codebook_size": tokenizer.codebook_size, "num_tokens": tokenizer.num_tokens}
        sizes["num_classes"] = 1000  # released tokenizers are of ImageNet
    else:
        missing = ", ".join(f"generator.{key}" for key in wanted if key not in run.generator)
        raise ConfigError(
            f"data.tokens={data.tokens} does not exist, so the sizes of its tokens are not known; give {missing}"
        )
    if data.factors is not None:
        factors = TokenFactors(data.factors)
        sizes |= {"codebook_size": factors.sizes[0], "num_tokens": sizes["num_tokens"] * len(factors)}
    return sizes
