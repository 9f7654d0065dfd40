"""Trained models in a few lines: load, reconstruct, generate.

tokenizer = load_tokenizer("titok-l32")  # or a folder of your own: "runs/titok"
images = reconstruct(tokenizer, images)

model = load_image_model("rar-xl")
images = generate(model.generator, model.tokenizer, labels, seed=0)  # with the published settings

Arguments are checked here, values included, which may wait for the device: models check types and shapes alone.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from common.build import nearest
from common.console import progress
from common.images import to_uint8
from modeling.arguments import (
    checked_images,
    checked_labels,
    checked_tokens,
    one_at_least,
    require_batch_size,
)
from modeling.generators.base import Generator, MaskedGenerator
from modeling.generators.orders import randomness, sample_orders
from modeling.layers.padding import crop_margins, pad_to_multiple
from modeling.pretrained.hub import from_pretrained, push_to_hub, save_pretrained
from modeling.pretrained.loading import (
    ImageModel,
    load_generator,
    load_image_model,
    load_tokenizer,
    require_tokenizer,
)
from modeling.sampling.draw import draw, numbers_needed, settings_for
from modeling.sampling.noise import generator_uniforms, sample_uniforms
from modeling.tokenizers.base import Tokenizer
from storage.sample_store import SampleStore

__all__ = [
    "ImageModel",
    "decode",
    "encode",
    "find_classes",
    "from_pretrained",
    "generate",
    "generate_into",
    "generate_tokens",
    "load_generator",
    "load_image_model",
    "load_tokenizer",
    "masking_steps",
    "push_to_hub",
    "randomness",
    "reconstruct",
    "reconstruct_any_size",
    "require_tokenizer",
    "sample_orders",
    "save_pretrained",
]


def reconstruct(
    tokenizer: Tokenizer, images: torch.Tensor, batch_size: int = 64, text: torch.Tensor | None = None
) -> torch.Tensor:
    """Encode and decode images [B, 3, H, W] in [0, 1]; the result has the same shape, range and device, in float32.

    Convolutional tokenizers take images of all sides that are multiples of their `downscale`.

    Args:
        text: embeddings [B, L, C] of captions for a tokenizer whose decoder reads text, else None.

    Raises:
        ValueError: as `encode` and `decode`; or the tokenizer gives no images.
    """
    require_batch_size(batch_size)
    if not tokenizer.predicts_pixels:
        raise ValueError(f"this {type(tokenizer).__name__} decodes to {tokenizer.learns}, not to images")
    tokenizer.check_images(images)
    tokenizer.check_text(text, len(images))
    parts = []
    for start in range(0, max(1, len(images)), batch_size):  # no images are a batch, too
        part = slice(start, start + batch_size)
        tokens = encode(tokenizer, images[part])
        parts.append(_decode(tokenizer, tokens, None if text is None else text[part]))
    return torch.cat(parts).to(images.device)


def reconstruct_any_size(tokenizer: Tokenizer, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode and decode images [B, 3, H, W] in [0, 1] at their own size: pad with grey, and crop back.

    Args:
        tokenizer: convolutional; it has `downscale` f, and its `decode` takes tokens [B, h, w].

    Returns:
        Tokens int64 [B, h, w] (continuous: latents [B, C, h, w]) of the padded images, h and w rounded up from H / f
        and W / f; and images of the shape, range and device given. Memory grows with the pixels of the batch.

    Raises:
        ValueError: the tokenizer takes images of one size only; or as `encode`.
    """
    factor = tokenizer.downscale
    if factor is None:
        raise ValueError(
            f"a {type(tokenizer).__name__} takes {tokenizer.image_size} x {tokenizer.image_size} pixels only; images"
            " of any size need a convolutional tokenizer such as vqgan"
        )
    tokenizer.check_images(
        images[..., :1, :1].expand(*images.shape[:-2], factor, factor)
    )  # all but the sides
    padded, margins = pad_to_multiple(images.to(_device(tokenizer)), factor)
    tokens = encode(tokenizer, padded)
    if padded.shape[-2] == padded.shape[-1]:
        tokens = _as_grid(tokenizer, tokens, padded)
    return tokens, crop_margins(_decode(tokenizer, tokens), margins).to(images.device)


def generate_tokens(
    generator: Generator,
    labels: torch.Tensor | Sequence[int],
    *,
    seed: int = 0,
    indices: Sequence[int] | torch.Tensor | None = None,
    random: Sequence[torch.Generator] | None = None,
    batch_size: int = 64,
    **sampling: Any,
) -> torch.Tensor:
    """Draw the tokens of one image per label.

    Args:
        labels: integers [B], 0 ... num_classes - 1 (num_classes: no class).
        seed, indices: sample b depends on (seed, indices[b]) and its label alone; indices are 0 ... B - 1 if None.
        random: in place of seed and indices, one CPU generator per sample.
        sampling: settings of the generator's kind (modeling/sampling/settings.py): guidance_scale, temperature, ...
            Those that are not given are the generator's (`Generator.sampling`), as published or as of its run.

    Returns:
        int64 [B, N] on the generator's device.

    Raises:
        ValueError: a setting or label is out of range or unknown, or labels, indices and `random` differ in number.
    """
    require_batch_size(batch_size)
    settings = settings_for(generator, sampling)
    count = numbers_needed(generator, settings)
    labels = checked_labels(generator, labels)
    numbers = torch.arange(len(labels)) if indices is None else torch.as_tensor(indices)
    for name, given in (("indices", numbers), ("random", random)):
        if given is not None and len(given) != len(labels):
            raise ValueError(f"{name} are {len(given)}, expected one per label: {len(labels)}")
    if not len(labels):
        return _no_tokens(generator)
    parts = []
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        if random is None:
            uniforms = sample_uniforms(seed, numbers[part], count)
        else:
            uniforms = generator_uniforms(random[part], count)
        parts.append(draw(generator, labels[part].to(_device(generator)), uniforms, settings))
    return torch.cat(parts)


def masking_steps(
    generator: Generator, labels: torch.Tensor | Sequence[int], *, seed: int = 0, **sampling: Any
) -> list[torch.Tensor]:
    """The tokens of a masked generator before every step, and the final ones, drawn as by `generate_tokens`.

    Returns:
        num_steps + 1 times int64 [B, N] on the generator's device; `generator.mask_token` (codebook_size) marks the
        tokens that are not decided yet: all in the first, none in the last.

    Raises:
        ValueError: the generator is not a masked one; a setting or label is out of range or unknown.
    """
    if not isinstance(generator, MaskedGenerator):
        raise ValueError(f"a {type(generator).__name__} has no masking steps, expected a MaskedGenerator")
    settings = settings_for(generator, sampling)
    labels, steps = checked_labels(generator, labels), []
    if not len(labels):
        return [_no_tokens(generator)] * (settings.num_steps + 1)
    uniforms = sample_uniforms(seed, range(len(labels)), numbers_needed(generator, settings))
    labels = labels.to(_device(generator))
    final = draw(generator, labels, uniforms, settings, trace=lambda _, tokens: steps.append(tokens.clone()))
    return [*steps, final]


def encode(tokenizer: Tokenizer, images: torch.Tensor) -> torch.Tensor:
    """Tokens int64 [B, N] (continuous: latents [B, C, 1, N]) of images [B, 3, H, W] in [0, 1].

    Those of images that are not square have their layout, from which `decode` knows the shape: tokens [B, h, w] and
    latents [B, C, h, w]. Images may be of any floating type and on any device.

    Raises:
        ValueError: images are not float [B, 3, H, W], outside [0, 1], or of sides that the tokenizer does not take.
    """
    images = checked_images(tokenizer, images, _device(tokenizer))
    with torch.inference_mode():
        tokens = tokenizer.encode(one_at_least(images))[: len(images)]
    height, width = images.shape[2:]
    return tokens if height == width else _as_grid(tokenizer, tokens, images)


def decode(tokenizer: Tokenizer, tokens: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
    """Images [B, 3, H, W] in [0, 1] of tokens [B, N]; `text` [B, L, C] where the tokenizer's decoder reads text.

    Tokens, or latents, may be in the layout of an image, as `encode` gives them, and integers of any type.

    Raises:
        ValueError: tokens or text are of the wrong type or shape, or a token is no code of the tokenizer.
    """
    tokens = checked_tokens(tokenizer, tokens)
    tokenizer.check_text(text, len(tokens))
    return _decode(tokenizer, tokens, text)


def _decode(tokenizer: Tokenizer, tokens: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
    """`decode` of what was checked or drawn: no value is read."""
    options = {} if text is None else {"text": one_at_least(text.to(_device(tokenizer), torch.float32))}
    with torch.inference_mode():
        images = tokenizer.decode(one_at_least(tokens.to(_device(tokenizer))), **options)
    return images[: len(tokens)].clamp(0, 1).clone()  # an ordinary tensor, usable under autograd


def generate(
    generator: Generator,
    tokenizer: Tokenizer,
    labels: torch.Tensor | Sequence[int],
    *,
    batch_size: int = 64,
    text: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Draw one image per label, float32 [B, 3, H, W] in [0, 1].

    Args:
        text: embeddings [B, L, C] for a tokenizer whose decoder reads text, else None.
        options: see `generate_tokens`, also for errors.
    """
    labels = checked_labels(generator, labels)
    tokenizer.check_text(text, len(labels))  # before hours of drawing
    if not tokenizer.is_discrete or generator.codebook_size > tokenizer.codebook_size:
        codes = f"{generator.codebook_size} codes, but the tokenizer has {tokenizer.codebook_size}"
        raise ValueError(f"the generator makes tokens of {codes}")
    tokens = generate_tokens(generator, labels, batch_size=batch_size, **options)
    slices = [slice(start, start + batch_size) for start in range(0, max(1, len(tokens)), batch_size)]
    return torch.cat([_decode(tokenizer, tokens[s], None if text is None else text[s]) for s in slices])


def generate_into(
    store: SampleStore,
    model: ImageModel,
    labels: torch.Tensor,
    *,
    seed: int,
    batch_size: int,
    **sampling: Any,
) -> None:
    """Generate the samples that `store` lacks, each process its share, with progress on the main process.

    `labels` int64 [count] are those of all samples of the store; for other arguments see `generate_tokens`.
    """
    todo = torch.from_numpy(store.todo())  # of this process
    bar = progress(None, "sampling", total=len(todo), unit="image")
    for indices in todo.split(batch_size) if len(todo) else ():  # no rows would be split into one empty batch
        # A batch of one runs other kernels than larger ones and rounds differently: draw a single sample twice.
        drawn = indices.repeat(2) if len(indices) == 1 else indices
        options = {"seed": seed, "indices": drawn, "batch_size": max(2, batch_size), **sampling}
        tokens = generate_tokens(model.generator, labels[drawn], **options)
        images = to_uint8(_decode(model.tokenizer, tokens))
        store.put(indices.tolist(), images[: len(indices)], tokens[: len(indices)])
        bar.update(len(indices))
    bar.close()
    store.flush()


def find_classes(wanted: str | Iterable[int | str], class_names: Sequence[str]) -> list[int]:
    """Labels of classes given by number or name; "all" is every class.

    Where classes are called by numbers, such as folders `1` to `12`, a number must mean the same as name and as label.

    Raises:
        ValueError: a class is unknown, or could be two.
    """
    if wanted == "all":
        return list(range(len(class_names)))
    items = [wanted] if isinstance(wanted, (str, int)) else wanted
    labels = [_label(n, class_names) if type(n) is int else _label_of_name(n, class_names) for n in items]
    if not labels:
        raise ValueError("classes=[] names no class; give numbers, names, or all")
    return labels


def _label(number: int, class_names: Sequence[str]) -> int:
    called = [label for label, name in enumerate(class_names) if name.isdecimal() and int(name) == number]
    in_range = 0 <= number < len(class_names)
    label = f"; label {number} is class {class_names[number]!r}" if in_range else ""
    if other := [n for n in called if n != number]:
        name = class_names[other[0]]
        raise ValueError(
            f"class {number} is ambiguous: class {name!r} has label {other[0]}{label}; say which by name, as text:"
            f""" classes='["{name}"]'"""
        )
    if not in_range:
        raise ValueError(f"class {number} is out of range; this generator knows 0..{len(class_names) - 1}")
    if not called and all(map(str.isdecimal, class_names)):
        raise ValueError(f"no class is called {number}{label}; say which by name, as text")
    return number


def _label_of_name(name: str, class_names: Sequence[str]) -> int:
    labels = [label for label, other in enumerate(class_names) if other == name]
    if len(labels) > 1:
        raise ValueError(f"class {name!r} is ambiguous: labels {labels} have this name; give the label")
    if not labels:
        near = nearest(str(name), class_names)
        raise ValueError(f"class {name!r} is unknown{near}; expected a name or 0..{len(class_names) - 1}")
    return labels[0]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _no_tokens(generator: Generator) -> torch.Tensor:
    return torch.empty(0, generator.num_tokens, dtype=torch.int64, device=_device(generator))


def _as_grid(tokenizer: Tokenizer, tokens: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Flat tokens in the layout of their images: [B, h, w], continuous ones [B, C, h, w]."""
    height, width = images.shape[2:]
    grid = tokenizer.token_grid(height, width)
    if tokenizer.is_discrete:
        return tokens.reshape(len(tokens), *grid)
    if grid[0] == 1 < grid[1]:  # latents of a flattened square look the same
        raise ValueError(
            f"images of {height} x {width} pixels are a single row of latents, expected more than"
            f" {height} pixels of height"
        )
    return tokens.reshape(*tokens.shape[:2], *grid)
