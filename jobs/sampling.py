"""Class-balanced samples of a generator as files."""

from dataclasses import fields

import torch

from common.console import Clock, banner, duration, say
from common.distributed import is_main, world_size
from common.image_rows import class_rows
from common.launch import processes
from jobs.options.sample_images import SampleOptions
from modeling.layers.half import stated
from modeling.pipeline import find_classes, generate_into, load_image_model
from modeling.sampling.draw import numbers_needed, settings_for
from modeling.sampling.settings import MaskedSamplingSettings, SamplingSettings
from storage.files import save_png
from storage.locks import reserved_folder
from storage.sample_store import SampleStore
from storage.weights import weight_hash

# Options that go to the sampler; null leaves one as the generator suggests.
SAMPLING = {f.name for kind in (SamplingSettings, MaskedSamplingSettings) for f in fields(kind)}


def sample_images(options: SampleOptions) -> None:
    """`draw_samples` on one process, or on all processes of a launcher."""
    with processes() as device:
        draw_samples(options, device)


def draw_samples(options: SampleOptions, device: torch.device) -> None:
    """Draw the missing samples, then write the final files; call it on every process."""
    with reserved_folder(options.output):
        _draw(options, device)


def _draw(options: SampleOptions, device: torch.device) -> None:
    model = load_image_model(options.generator, options.tokenizer, device, precision=options.precision)
    given = {k: v for k in SAMPLING if (v := getattr(options, k)) is not None}
    settings = settings_for(model.generator, given)
    numbers_needed(model.generator, settings)  # raises for settings that do not fit
    sampling = vars(settings)
    classes = find_classes(options.classes, model.class_names)
    labels = torch.tensor(classes)[torch.arange(options.num_samples) % len(classes)]  # int64 [num_samples]
    facts = {"num_samples": options.num_samples, "classes": classes, "seed": options.seed}
    facts["precision"] = stated(options.precision)
    hashes = {"generator": weight_hash(model.generator), "tokenizer": weight_hash(model.tokenizer)}
    store = SampleStore(
        options.output,
        count=options.num_samples,
        side=model.tokenizer.image_size,
        num_tokens=model.generator.num_tokens,
        facts=facts | sampling | hashes,
        png=options.png,
        npz=options.npz,
        overwrite=options.overwrite,
    )
    if store.complete:
        say(f"{options.output} already holds these {options.num_samples} samples; nothing to do")
        return
    about = {"classes": len(classes), "devices": f"{world_size()} x {device.type}"}
    banner("Sampling", {**vars(options), **sampling, **about})
    clock = Clock()
    generate_into(store, model, labels, seed=options.seed, batch_size=options.batch_size, **sampling)
    each = (seconds := clock.lap()) / max(1, store.missing)  # of all processes together
    if options.grid and is_main():
        names = [model.class_names[c] for c in classes]
        save_png(f"{options.output}/samples.png", class_rows(store.image, store.count, names))
    tokens = {k: getattr(model.generator, k) for k in ("num_tokens", "codebook_size")}
    store.finish(labels.numpy(), seconds_per_image=each, **tokens)
    say(f"{store.missing} samples in {duration(seconds)}, {each:.4f} s per image; see {options.output}")
