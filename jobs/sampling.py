"""Class-balanced samples of a generator as files."""

from dataclasses import dataclass, fields

import torch

from common.build import check_least
from common.choices import Precision
from common.config import option
from common.console import Clock, banner, duration, say
from common.distributed import is_main, world_size
from common.image_rows import GRID_COLUMNS, GRID_ROWS, class_rows
from common.launch import processes
from compat.sampling import translate_sampling
from modeling.layers.half import stated
from modeling.pipeline import find_classes, generate_into, load_image_model
from modeling.sampling.draw import numbers_needed, settings_for
from modeling.sampling.foreign_keywords import refuse_foreign
from modeling.sampling.settings import MaskedSamplingSettings, SamplingSettings
from storage.files import save_png
from storage.locks import reserved_folder
from storage.sample_store import SampleStore
from storage.weights import weight_hash

# Options that go to the sampler; null leaves one as the generator suggests.
SAMPLING = {f.name for kind in (SamplingSettings, MaskedSamplingSettings) for f in fields(kind)}


@dataclass(kw_only=True)
class SampleOptions:
    """What to sample, and where to write it."""

    generator: str | dict = option(help="name of a released model, folder, or file (docs/models.md)")
    tokenizer: str | dict | None = option(
        None, "likewise; null = the one that the generator was trained with"
    )
    output: str = option(help="folder for <index:06d>.png, samples.npz, samples.png and samples.json")
    num_samples: int = option(50_000, "number of samples, all classes together")
    classes: list[int | str] | int | str = option("all", "class numbers or names: all, 3, [3,7], [Flags]")
    guidance_scale: float | list[float] | None = option(
        None, "0 = off; null = as the generator suggests (so all of these); [1.9,2.0]: per sub-token"
    )
    guidance_power: float | None = option(None, "rise of the guidance, 0 = constant")
    guidance_schedule: str | None = option(None, "masked generators: constant, linear or power-cosine")
    temperature: float | list[float] | None = option(None, "0 = always the likeliest token")
    top_k: int | list[int] | None = option(None, "autoregressive generators: the k likeliest tokens; 0 = all")
    top_p: float | list[float] | None = option(None, "likewise: the likeliest tokens of this mass; 1 = all")
    num_steps: int | None = option(None, "masked generators: steps in which the tokens are filled in")
    softmax_annealing: bool | None = option(None, "masked generators: sharpen the choice towards the end")
    seed: int = option(0, "random seed; a sample depends on it and its index only")
    precision: Precision = option("float32", "of the models' weights and computation (docs/precision.md)")
    batch_size: int = option(64, "samples per process and batch; affects speed and memory only")
    png: bool = option(True, "write a PNG file per sample")
    npz: bool = option(True, "write samples.npz for evaluators")
    grid: bool = option(True, f"write samples.png, up to {GRID_ROWS} classes of {GRID_COLUMNS} samples")
    overwrite: bool = option(False, "replace samples that were made with other settings")

    @classmethod
    def translate(cls, tree: dict) -> dict:  # files of the original code release are accepted too
        refuse_foreign(tree)
        return translate_sampling(tree)

    def __post_init__(self) -> None:
        check_least(self, num_samples=1, batch_size=1)


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
