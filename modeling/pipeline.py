"""Trained models in a few lines: load, reconstruct, generate.

tokenizer = load_tokenizer("runs/titok")
images = reconstruct(tokenizer, images)

model = load_image_model("runs/rar")
images = generate(model.generator, model.tokenizer, labels, seed=0, **model.sampling)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.build import nearest
from common.config import find_file
from common.console import progress
from common.image_store import ImageStore
from common.images import to_uint8
from common.weights import CheckpointError, load_weights, weight_hash
from modeling.factory import build_generator, build_tokenizer
from modeling.generators.base import AutoregressiveGenerator, Generator
from modeling.pretrained.run_folder import RunFolder, open_run
from modeling.sampling import sample, sample_uniforms
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


def reconstruct(tokenizer: Tokenizer, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """Encode and decode images [B, 3, H, W] in [0, 1]; the result has the same shape, range and device."""
    device = _device(tokenizer)
    with torch.inference_mode():
        parts = [
            tokenizer.decode(tokenizer.encode(p.to(device))).clamp(0, 1) for p in images.split(batch_size)
        ]
    return torch.cat(parts).clone().to(images.device)


def generate_tokens(
    generator: Generator,
    labels: torch.Tensor,
    *,
    seed: int,
    indices: Sequence[int] | torch.Tensor | None = None,
    guidance_scale: float = 4.0,
    guidance_power: float = 1.0,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> torch.Tensor:
    """Draw the tokens of one image per label.

    Args:
        labels: int64 [B], 0 ... num_classes - 1 (num_classes: no class).
        seed, indices: sample b depends on (seed, indices[b]) and its label alone; indices are 0 ... B - 1 if None.
        guidance_scale, guidance_power, temperature: see `modeling.sampling.sample`.
        batch_size: labels are worked through in parts of this size.

    Returns:
        int64 [B, N] on the generator's device.

    Raises:
        ValueError: a setting or label is out of range, or the generator is of a kind that this cannot sample.
    """
    if not isinstance(generator, AutoregressiveGenerator):
        raise ValueError(f"{type(generator).__name__} is not an autoregressive generator")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    numbers = torch.arange(len(labels)) if indices is None else torch.as_tensor(indices)
    parts = [
        sample(
            generator,
            part.to(_device(generator)),
            guidance_scale=guidance_scale,
            guidance_power=guidance_power,
            temperature=temperature,
            uniforms=sample_uniforms(seed, numbers_of_part, generator.num_tokens),
        )
        for part, numbers_of_part in zip(labels.split(batch_size), numbers.split(batch_size), strict=True)
    ]
    return torch.cat(parts)


def decode(tokenizer: Tokenizer, tokens: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] in [0, 1] of tokens [B, N]."""
    with torch.inference_mode():
        images = tokenizer.decode(tokens.to(_device(tokenizer)))
    return images.clamp(0, 1).clone()


def generate(
    generator: Generator,
    tokenizer: Tokenizer,
    labels: torch.Tensor,
    *,
    seed: int,
    indices: Sequence[int] | torch.Tensor | None = None,
    guidance_scale: float = 4.0,
    guidance_power: float = 1.0,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> torch.Tensor:
    """Draw one image per label, float32 [B, 3, H, W] in [0, 1]; arguments and errors as `generate_tokens`."""
    tokens = generate_tokens(
        generator,
        labels,
        seed=seed,
        indices=indices,
        guidance_scale=guidance_scale,
        guidance_power=guidance_power,
        temperature=temperature,
        batch_size=batch_size,
    )
    return torch.cat([decode(tokenizer, part) for part in tokens.split(batch_size)])


def generate_into(
    store: ImageStore,
    model: ImageModel,
    labels: torch.Tensor,
    *,
    seed: int,
    batch_size: int,
    **sampling: float,
) -> None:
    """Make the samples that `store` lacks, each process its share, with progress on the main process.

    Args:
        labels: int64 [count], of all samples of the store.
        seed, batch_size, sampling: see `generate_tokens`.
    """
    todo = torch.from_numpy(store.todo())
    # The main process shows the progress of its own share; the others have as much to do.
    bar = progress(None, "sampling", total=len(todo), unit="image")
    for indices in todo.split(batch_size):
        tokens = generate_tokens(
            model.generator, labels[indices], seed=seed, indices=indices, batch_size=batch_size, **sampling
        )
        store.put(indices.tolist(), to_uint8(decode(model.tokenizer, tokens)), tokens)
        bar.update(len(indices))
    bar.close()
    store.flush()


def find_classes(wanted: str | Iterable[int | str], class_names: Sequence[str]) -> list[int]:
    """Labels of classes given by number or name; "all" is every class.

    Raises:
        ValueError: a class does not exist; the message gives the range or the nearest name.
    """
    if wanted == "all":
        return list(range(len(class_names)))
    labels = []
    for item in [wanted] if isinstance(wanted, (str, int)) else wanted:
        if isinstance(item, int):
            if not 0 <= item < len(class_names):
                raise ValueError(
                    f"class {item} is out of range; this generator knows 0..{len(class_names) - 1}"
                )
            labels.append(item)
        elif item in class_names:
            labels.append(list(class_names).index(item))
        else:
            raise ValueError(
                f"class {item!r} is unknown{nearest(item, class_names)}; this generator knows"
                f" {len(class_names)} classes, numbers 0..{len(class_names) - 1}"
            )
    if not labels:
        raise ValueError("classes=[] names no class; give numbers, names, or all")
    return labels


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
