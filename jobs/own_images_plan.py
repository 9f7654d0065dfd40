"""What is trained on own images, and for how long: YAML files, chosen by the table and by a few measured steps."""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.build import build_dataclass
from common.config import first_difference, load_settings
from common.console import duration, say
from data.splitting import split_images
from jobs.inspect_data import inspect_data
from jobs.options.inspect_data import InspectOptions
from jobs.options.own_images import OwnImagesOptions
from jobs.options.plan import PlanOptions
from jobs.own_images_table import EVALUATIONS, expected_psnr, for_device, for_images, steps_for
from jobs.plan import Estimate, estimate
from jobs.recipe_runs import launch
from storage.files import write_json, write_yaml
from storage.json_files import read_json, try_json
from training.generator_settings import GeneratorRun
from training.memory_plan import Plan
from training.run_lengths import in_steps
from training.tokenizer_settings import TokenizerRun
from training.tracker import METRICS_FILE, read_metrics

MOST_INSPECTED, MOST_HELD_OUT = 2_000, 2_000  # images
TIMED_STEPS, TIMED_EVERY = 12, 4
WORK = ("titok", "timing")  # folders of the output that training makes
FOLDERS = {"rar": "rar", "maskgit": "maskgit"}


@dataclass(frozen=True)
class Chosen:
    """What was found out and chosen for a folder of images."""

    root: str  # of the paths in data/train.csv and data/validation.csv
    class_names: list[str]
    train_images: int
    validation_images: int
    device: str  # cpu or gpu
    recipes: str  # name below configs/titok and others
    image_size: int
    crops: str
    tokenizer_steps: int
    generator_steps: int
    tokenizer_seconds: float  # of an update
    generator_seconds: float
    measured: bool  # by updates on this machine; else estimated for options.gpu
    samples: int

    @property
    def training_seconds(self) -> float:
        """Of both trainings."""
        return self.tokenizer_steps * self.tokenizer_seconds + self.generator_steps * self.generator_seconds


def plan_file(options: OwnImagesOptions) -> Path:
    """Where the plan of a folder is stored."""
    return options.folder / "own_images.json"


def training_arguments(options: OwnImagesOptions, recipes: str, kind: str) -> list[str]:
    """Of train_titok.py (kind titok) or train_rar.py: the shipped recipe, and what was chosen."""
    return [f"config=configs/{kind}/{recipes}.yaml", f"config={options.folder / f'{kind}.yaml'}"]


def known_plan(options: OwnImagesOptions) -> Chosen | None:
    """The plan of an earlier call with the same options; None if there is none.

    Raises:
        ValueError: training has begun with other options.
    """
    stored = try_json(plan_file(options), settings=dict, chosen=dict)
    if not stored:
        return None
    other = first_difference(stored["settings"], options.settings, "settings")
    if not other:
        return Chosen(**stored["chosen"])
    if any((options.folder / name).exists() for name in WORK):
        raise ValueError(f"{options.folder} was begun with other options ({other}); choose another output")
    return None


def choose_device(options: OwnImagesOptions) -> str:
    """'cpu' or 'gpu'; training programs find the same one.

    Raises:
        ValueError: a GPU is asked for, and there is none.
    """
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for the programs that are started
        return "cpu"
    there = torch.cuda.is_available()
    if options.device == "gpu" and not there and not options.plan:
        raise ValueError("device=gpu, but there is no GPU; plan=true says what would be done with one")
    return "gpu" if there or options.device == "gpu" else "cpu"


def make_plan(options: OwnImagesOptions) -> Chosen:
    """Look at the images, divide them, write the YAML files of both trainings, and measure a few steps."""
    device = for_device(choose_device(options))
    folder = options.folder
    say(f"looking at {options.images}")
    inspect_data(
        InspectOptions(
            data=options.images,
            output=str(folder / "data"),
            orientation="upright",
            max_images=MOST_INSPECTED,
        )
    )
    split = split_images(options.images, share=options.validation, most=MOST_HELD_OUT, seed=options.seed)
    split.left_out.warn(options.images)
    split.write(folder / "data")
    for line in split.lines():
        say(line)
    held_out = int(split.held_out.sum())
    rows = for_images(len(split.paths) - held_out)
    chosen = Chosen(
        root=str(split.root),
        class_names=list(split.class_names),
        train_images=len(split.paths) - held_out,
        validation_images=held_out,
        device=device.device,
        recipes=device.recipes,
        image_size=options.image_size or device.image_size,
        crops=rows.crops,
        tokenizer_steps=TIMED_STEPS,
        generator_steps=TIMED_STEPS,
        tokenizer_seconds=0.0,
        generator_seconds=0.0,
        measured=device.device == "cpu" or torch.cuda.is_available(),
        samples=options.samples or min(800, max(64, 16 * len(split.class_names))),
    )
    warn_of_images(folder, chosen)
    write_recipes(options, chosen)
    chosen = with_lengths(options, chosen)
    write_recipes(options, chosen)
    write_json(plan_file(options), {"settings": options.settings, "chosen": asdict(chosen)})
    return chosen


def warn_of_images(folder: Path, chosen: Chosen) -> None:
    """Say what the sizes of the images mean for the size that was chosen."""
    sizes = read_json(folder / "data" / "inspection.json").get("sizes")
    if sizes and sizes["shorter_side"]["median"] < chosen.image_size:
        median = sizes["shorter_side"]["median"]
        say(
            f"half of the images are smaller than {chosen.image_size} pixels (median {median}): they are enlarged"
        )


def data_section(options: OwnImagesOptions, chosen: Chosen, split: str, **augmentation: Any) -> dict:
    """`data.train` or `data.validation` of the tokenizer's run."""
    return {
        "name": "image_list",
        "path": str(options.folder / "data" / f"{split}.csv"),
        "images": chosen.root,
        "class_names": chosen.class_names,
        "image_size": "${tokenizer.image_size}",
        "orientation": "upright",
        **augmentation,
    }


def write_recipes(options: OwnImagesOptions, chosen: Chosen) -> None:
    """Write what was chosen, to be read after the shipped recipes."""
    folder, rows = options.folder, for_images(chosen.train_images)
    kind = options.generator

    def training(steps: int, evaluations: int) -> dict[str, Any]:
        every = max(1, steps // evaluations)
        return {
            "max_steps": steps,
            "log_every": max(1, min(50, steps // 10)),
            "evaluate_every": every,
            "preview_every": max(1, steps // 4),
            "save_every": every,
            "keep_best": True,
        }

    def experiment(name: str) -> dict[str, Any]:
        return {"name": f"{folder.name}-{name}", "output_dir": str(folder / name), "seed": options.seed}

    augmentation = {"random_area": rows.random_area, "random_flip": True}
    titok = {
        "experiment": experiment("titok"),
        "tokenizer": {"image_size": chosen.image_size},
        "data": {
            "train": data_section(options, chosen, "train", **augmentation),
            "validation": data_section(options, chosen, "validation"),
        },
        "training": training(chosen.tokenizer_steps, EVALUATIONS["titok"]),
    }
    generator = {
        "experiment": experiment(kind),
        "generator": {"dropout": rows.dropout} if kind == "rar" else {},
        "data": {
            "tokens": str(folder / "train.tokens"),
            "validation": str(folder / "validation.tokens"),
            "tokenizer": str(folder / "titok" / "best"),
        },
        "training": training(chosen.generator_steps, EVALUATIONS["generator"]) | {"patience": rows.patience},
    }
    write_yaml(folder / "titok.yaml", titok)
    write_yaml(folder / f"{kind}.yaml", {key: section for key, section in generator.items() if section})


def with_lengths(options: OwnImagesOptions, chosen: Chosen) -> Chosen:
    """The plan with the number of steps that fit into the time."""
    device, rows = for_device(chosen.device), for_images(chosen.train_images)
    tokenizer, generator = estimates(options, chosen)
    if chosen.measured:
        seconds = timed_step(options, chosen)
        # The generator has no tokens yet: its steps are timed by their operations.
        both = seconds, seconds * generator.step_flops / tokenizer.step_flops
    else:
        both = tokenizer.step_seconds, generator.step_seconds
    budget = 60 * options.minutes
    known = {"images": chosen.train_images}
    first = steps_for(
        device.tokenizer_time * budget,
        both[0],
        batch=tokenizer.global_batch,
        passes=rows.tokenizer_passes,
        **known,
    )
    second = steps_for(
        device.generator_time * budget,
        both[1],
        batch=generator.global_batch,
        passes=rows.generator_passes,
        **known,
    )
    return replace(
        chosen,
        tokenizer_steps=first,
        generator_steps=second,
        tokenizer_seconds=both[0],
        generator_seconds=both[1],
    )


def estimates(options: OwnImagesOptions, chosen: Chosen) -> tuple[Estimate, Estimate]:
    """Both trainings on paper: batches, operations, and for a GPU memory and time."""
    machine = build_dataclass(PlanOptions, {"gpus": 1, "gpu": options.gpu, "examples": chosen.train_images})
    titok = load_settings(TokenizerRun, training_arguments(options, chosen.recipes, "titok"))
    sizes = {
        "codebook_size": titok.tokenizer["quantizer"]["codebook_size"],
        "num_tokens": titok.tokenizer["num_latent_tokens"],
        "num_classes": len(chosen.class_names),
    }
    arguments = training_arguments(options, chosen.recipes, options.generator)
    generator = load_settings(GeneratorRun, arguments)
    generator.generator |= sizes
    if chosen.device == "gpu":
        return estimate(titok, machine), estimate(generator, machine)
    return tuple(
        estimate(_on_cpu(run), machine, Plan(_on_cpu(run), like_gpu=False)) for run in (titok, generator)
    )


def _on_cpu(run: Any) -> Any:
    training = replace(run.training, mixed_precision="no")
    return replace(in_steps(run, training.max_steps), training=training)


def timed_step(options: OwnImagesOptions, chosen: Chosen) -> float:
    """Seconds of an update of the tokenizer on this machine, data included."""
    folder = options.folder / "timing"
    say(f"measuring {TIMED_STEPS} steps of the tokenizer")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    length = {"max_steps": TIMED_STEPS, "log_every": TIMED_EVERY, "keep_best": "false"}
    length |= {f"{what}_every": 0 for what in ("evaluate", "preview", "save")}
    arguments = training_arguments(options, chosen.recipes, "titok") + [
        f"experiment.output_dir={folder}",
        *(f"training.{key}={value}" for key, value in length.items()),
    ]
    launch("train_titok.py", arguments, log=options.folder / "timing.log")
    found = [r["seconds_per_step"] for r in read_metrics(folder / METRICS_FILE) if "seconds_per_step" in r]
    shutil.rmtree(folder)
    return found[-1]


def rows(options: OwnImagesOptions, chosen: Chosen) -> Mapping[str, str]:
    """The plan in words, a line each."""
    classes = f"{len(chosen.class_names)} classes" if len(chosen.class_names) > 1 else "one class"
    by = "measured here" if chosen.measured else f"estimated for gpu={options.gpu}"

    def length(steps: int, seconds: float) -> str:
        return f"{steps:,} steps of {seconds:.2f} s, {duration(steps * seconds)} ({by})"

    found = {
        "images": f"{chosen.train_images:,} to train on, {chosen.validation_images:,} held out, {classes}",
        "device": chosen.device,
        "recipes": f"configs/titok/{chosen.recipes}.yaml, configs/{options.generator}/{chosen.recipes}.yaml",
        "image size": f"{chosen.image_size} x {chosen.image_size}",
        "tokenizer": length(chosen.tokenizer_steps, chosen.tokenizer_seconds),
        "generator": length(chosen.generator_steps, chosen.generator_seconds) + " at most",
        "samples": f"{chosen.samples}",
        "in all": f"about {duration(1.1 * chosen.training_seconds + overhead(chosen))}",
    }
    if chosen.device == "cpu" and (psnr := expected_psnr(chosen.tokenizer_steps)):
        found["expect"] = psnr
    return found


def overhead(chosen: Chosen) -> float:
    """Seconds beside training: starts of programs, tokens, samples, report."""
    return 60.0 + 0.02 * (chosen.train_images + chosen.samples)


def memory(options: OwnImagesOptions, chosen: Chosen) -> Iterator[str]:
    """Lines about the memory of a GPU; none for CPUs."""
    if chosen.device == "gpu":
        for name, found in zip(("tokenizer", "generator"), estimates(options, chosen), strict=True):
            used = found.plan.total(found.micro_batch) / 1e9
            fits = "fits" if found.fits else "DOES NOT FIT"
            yield (
                f"{name}: {used:.1f} GB on {options.gpu} with a micro-batch of {found.micro_batch} x"
                f" {found.accumulation} accumulated: {fits}"
            )
