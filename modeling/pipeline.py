"""Trained models in a few lines: load, reconstruct, generate.

tokenizer = load_tokenizer("runs/titok")
images = reconstruct(tokenizer, images)

model = load_image_model("runs/rar")
images = generate(model.generator, model.tokenizer, labels, seed=0, **model.sampling)
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from common.build import nearest
from common.console import progress
from common.image_store import ImageStore
from common.images import to_uint8
from modeling.generators.base import AutoregressiveGenerator, Generator
from modeling.pretrained.loading import (
    ImageModel,
    load_generator,
    load_image_model,
    load_tokenizer,
    require_tokenizer,
)
from modeling.sampling import sample, sample_uniforms
from modeling.tokenizers.base import Tokenizer

__all__ = [
    "ImageModel",
    "decode",
    "find_classes",
    "generate",
    "generate_into",
    "generate_tokens",
    "load_generator",
    "load_image_model",
    "load_tokenizer",
    "reconstruct",
    "require_tokenizer",
]


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
